//! When a test alarm is due: a day of the week, or every day, and a time.
//!
//! A test whose time passed while the device was off is made up for within [`GRACE_MINUTES`], across midnight
//! as well; later it waits for the next. The day for which the last test was is kept, so that a restart, or a
//! clock that is set back, does not repeat it.

/// How late a test may begin.
const GRACE_MINUTES: i64 = 60;
const MINUTES_A_DAY: i64 = 24 * 60;

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
    /// The [`Local::day`] for which a test is to begin now, today or yesterday; `last` is that of the last one.
    pub fn due(self, now: Local, last: Option<i64>) -> Option<i64> {
        let is_due = |ago: &u32| {
            let weekday = (now.weekday + 7 - ago) % 7;
            let late =
                MINUTES_A_DAY * i64::from(*ago) + i64::from(now.minute) - i64::from(self.minute);
            self.weekday.is_none_or(|wanted| wanted == weekday)
                && (0..GRACE_MINUTES).contains(&late)
                && last.is_none_or(|last| last < now.day - i64::from(*ago))
        };
        [0, 1].iter().find(|ago| is_due(ago)).map(|ago| now.day - i64::from(*ago))
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
                if let Some(due) = schedule.due(now, last).filter(|_| !off) {
                    last = Some(due);
                    done.push((day, minute));
                }
            }
        }
        assert_eq!(done, [(2, 600), (9, 610)]);
        let back = Local { day: 9, weekday: 2, minute: 600 };
        assert_eq!(schedule.due(back, last), None, "set back");
    }

    #[test]
    fn a_test_shortly_before_midnight_is_made_up_for_behind_it_and_counts_for_its_own_day() {
        // Sunday, 23:30.
        let weekly = Schedule { weekday: Some(6), minute: 1410 };
        let monday = |minute| Local { day: 7, weekday: 0, minute };
        assert_eq!(weekly.due(monday(29), None), Some(6));
        assert_eq!(weekly.due(monday(30), None), None, "an hour late");
        assert_eq!(weekly.due(monday(5), Some(6)), None, "done in time");
        assert_eq!(weekly.due(Local { weekday: 1, ..monday(5) }, None), None);
        let daily = Schedule { weekday: None, minute: 1410 };
        let (mut last, mut done) = (Some(-1), Vec::new());
        for minute in 0..4 * 1440 {
            let (day, at) = (i64::from(minute / 1440), minute % 1440);
            // Off over the second midnight.
            let off = (2 * 1440 - 60..2 * 1440 + 10).contains(&minute);
            let now = Local { day, weekday: (minute / 1440) % 7, minute: at };
            if let Some(due) = daily.due(now, last).filter(|_| !off) {
                last = Some(due);
                done.push((day, at));
            }
        }
        assert_eq!(done, [(0, 1410), (2, 10), (2, 1410), (3, 1410)]);
    }
}
