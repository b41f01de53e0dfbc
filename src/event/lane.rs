//! Priority classes of events.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A priority class. Lanes are drained in the order in which they stand here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Somebody may need help. Never expired, never evicted; overtakes everything.
    Alert,
    /// What the device says of itself and its losses.
    Status,
    /// Readings. May expire and be evicted, oldest first.
    Telemetry,
}

impl Lane {
    /// All lanes, in the order in which they are drained.
    pub const ALL: [Self; 3] = [Self::Alert, Self::Status, Self::Telemetry];

    /// The name on topics, in attributes and in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::Status => "status",
            Self::Telemetry => "telemetry",
        }
    }

    /// Place in [`Lane::ALL`]; also the lane's byte in a stored key, so it never changes.
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no lane.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no lane; there are alert, status and telemetry")]
pub struct UnknownLane(pub String);

impl FromStr for Lane {
    type Err = UnknownLane;

    fn from_str(text: &str) -> Result<Self, UnknownLane> {
        Self::ALL
            .into_iter()
            .find(|lane| lane.as_str() == text)
            .ok_or_else(|| UnknownLane(text.to_owned()))
    }
}
