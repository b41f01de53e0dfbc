//! When a test alarm is due: a day of the week, or every day, and a time.
//!
//! A test whose time passed while the device was off is made up for within [`GRACE_MINUTES`]; later it
//! waits for the next. The day of the last test is kept, so that a restart, or a clock that is set
//! back, does not repeat it.

/// How late a test may begin.
const GRACE_MINUTES: u32 = 60;

/// Day and time by the device's local clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// 0 is Monday; `None`: every day.
    pub weekday: Option<u32>,
    /// Minutes since midnight.
    pub minute: u32,
}

/// A reading of the local clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// Days since some day, the same for the whole life of a device.
    pub day: i64,
    /// 0 is Monday.
    pub weekday: u32,
    /// Minutes since midnight.
    pub minute: u32,
}

impl Schedule {
    /// Whether a test is to begin now; `last` is the [`Local::day`] of the last one.
    pub fn is_due(self, now: Local, last: Option<i64>) -> bool {
        let today = self.weekday.is_none_or(|weekday| weekday == now.weekday);
        let time = (self.minute..self.minute + GRACE_MINUTES).contains(&now.minute);
        today && time && last.is_none_or(|last| last < now.day)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_comes_once_a_week_in_the_hour_behind_its_time() {
        let schedule = Schedule { weekday: Some(2), minute: 600 };
        let mut last = None;
        let mut done = Vec::new();
        for day in 0..21i64 {
            for minute in 0..1440 {
                let weekday = (day % 7) as u32;
                let now = Local { day, weekday, minute };
                // Off in the second week until ten minutes later, in the third for two hours.
                let off = day == 9 && minute < 610 || day == 16 && minute < 720;
                if !off && schedule.is_due(now, last) {
                    last = Some(day);
                    done.push((day, minute));
                }
            }
        }
        assert_eq!(done, [(2, 600), (9, 610)]);
        assert!(!schedule.is_due(Local { day: 9, weekday: 2, minute: 600 }, last), "set back");
    }
}
