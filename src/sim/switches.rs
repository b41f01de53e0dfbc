//! What can be broken in the simulated world, each by a switch that somebody throws on the page.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a switch breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No mains power.
    Mains,
    /// No way to the broker.
    Network,
    /// No room on the disk.
    Disk,
    /// The CO2 sensor does not answer.
    Sensor,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mains, Self::Network, Self::Disk, Self::Sensor];

    /// Its name, as the page has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mains => "mains",
            Self::Network => "network",
            Self::Disk => "disk",
            Self::Sensor => "sensor",
        }
    }
}

/// The switches. Cheap to clone; all clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Switches([Arc<AtomicBool>; 4]);

impl Switches {
    /// Whether it is broken now.
    pub fn is_on(&self, fault: Fault) -> bool {
        self.switch(fault).load(Ordering::Relaxed)
    }

    /// Breaks or mends it.
    pub fn set(&self, fault: Fault, on: bool) {
        self.switch(fault).store(on, Ordering::Relaxed);
    }

    /// The switch itself.
    pub fn switch(&self, fault: Fault) -> &Arc<AtomicBool> {
        let [mains, network, disk, sensor] = &self.0;
        match fault {
            Fault::Mains => mains,
            Fault::Network => network,
            Fault::Disk => disk,
            Fault::Sensor => sensor,
        }
    }
}
