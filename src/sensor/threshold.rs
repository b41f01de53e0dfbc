//! Too much or too little: a level, the way back (hysteresis), and how long either must hold.

use std::time::{Duration, Instant};

use crate::config::{Side, Threshold};

/// One `[[sensor.threshold]]` at work.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    side: Side,
    level: f64,
    clear: f64,
    hold: Duration,
    exceeded: bool,
    /// Since when the values speak for the other state.
    turning: Option<Instant>,
}

impl Watch {
    pub(super) fn new(threshold: &Threshold) -> Self {
        let Threshold { side, level, clear, hold, .. } = *threshold;
        Self { side, level, clear, hold, exceeded: false, turning: None }
    }

    /// A pause without values: whatever is to hold, begins anew.
    pub(super) fn interrupt(&mut self) {
        self.turning = None;
    }

    /// Takes a value; the new state if it changes with it: true for exceeded.
    pub(super) fn handle(&mut self, now: Instant, value: f64) -> Option<bool> {
        let turns = match (self.exceeded, self.side) {
            (false, Side::Above) => value > self.level,
            (false, Side::Below) => value < self.level,
            (true, Side::Above) => value <= self.clear,
            (true, Side::Below) => value >= self.clear,
        };
        if !turns {
            self.turning = None;
            return None;
        }
        let since = *self.turning.get_or_insert(now);
        if now.duration_since(since) < self.hold {
            return None;
        }
        self.turning = None;
        self.exceeded = !self.exceeded;
        Some(self.exceeded)
    }
}
