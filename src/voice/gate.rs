//! The energy gate: whether anything is to be heard at all.
//!
//! Most of a device's life is silence, and the model costs the same for silence as for speech. So
//! blocks of 100 ms are compared with the *noise floor*, the level of the room when nobody speaks,
//! and the model looks only at windows that hold an *active* block.
//!
//! The floor follows a quieter block at once and a louder one slowly. A gate that is wrong in one
//! direction costs a little electricity, in the other a cry for help, so everything is chosen to
//! open too often: the margin is below what speech stands out by, and above a certain level
//! every block is active, whatever the floor has come to.

/// Below this nothing is active: the self-noise of a good microphone.
const QUIETEST_DBFS: f32 = -65.0;
/// From here on everything is active. Also the highest that the floor can come to.
const LOUD_DBFS: f32 = -35.0;
/// How far an active block stands out of the floor.
const MARGIN_DB: f32 = 5.0;
/// How fast the floor follows a louder room, in dB a block: 10 dB in 5 s. A fan closes the gate
/// within seconds, a cry that lasts 3 s raises the floor by 6 dB and still stands out.
const RISE_DB: f32 = 0.2;

/// Decides for each block of 100 ms. See the module.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    floor_dbfs: f32,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { floor_dbfs: QUIETEST_DBFS - MARGIN_DB }
    }

    /// Takes the level of the next block; whether the block is active.
    pub(super) fn is_active(&mut self, level_dbfs: f32) -> bool {
        let stands_out = level_dbfs >= self.floor_dbfs + MARGIN_DB;
        let active = level_dbfs >= QUIETEST_DBFS && (stands_out || level_dbfs >= LOUD_DBFS);
        let risen = self.floor_dbfs + RISE_DB;
        self.floor_dbfs = level_dbfs.min(risen).clamp(QUIETEST_DBFS - MARGIN_DB, LOUD_DBFS);
        active
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(levels: impl IntoIterator<Item = f32>) -> Gate {
        let mut gate = Gate::new();
        for level in levels {
            gate.is_active(level);
        }
        gate
    }

    #[test]
    fn silence_is_never_active() {
        let mut gate = Gate::new();
        assert!((0..600).all(|_| !gate.is_active(-120.0)));
        assert!((0..600).all(|_| !gate.is_active(-70.0)));
    }

    #[test]
    fn first_word_after_power_on_is_active() {
        assert!(Gate::new().is_active(-40.0));
        assert!(Gate::new().is_active(-60.0));
    }

    #[test]
    fn steady_noise_closes_the_gate_within_ten_seconds_and_speech_over_it_opens_it() {
        let mut gate = after([-50.0; 100]);
        assert!(!gate.is_active(-50.0));
        assert!(gate.is_active(-44.0));
    }

    #[test]
    fn floor_follows_a_quiet_room_at_once() {
        let mut gate = after(std::iter::repeat_n(-40.0, 300).chain([-62.0]));
        assert!(gate.is_active(-55.0));
    }

    #[test]
    fn a_cry_of_four_seconds_stays_active_to_its_end() {
        let mut gate = after([-60.0; 100]);
        assert!((0..40).all(|_| gate.is_active(-38.0)));
    }

    #[test]
    fn loud_sound_is_active_however_long_it_lasts() {
        let mut gate = after([-20.0; 10_000]);
        assert!(gate.is_active(-20.0));
    }
}
