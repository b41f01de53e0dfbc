//! A button: from the level of its contact to a press.
//!
//! ```text
//! contact  ──┐ ┌┐ ┌──────────────────────────┐ ┌┐
//!            └─┘└─┘                          └─┘└──
//! debounced     ├──── down ──────────────────────┤
//!               0        1 s          3 s
//!               │ short   │  medium    │ long: counts while it is still down
//! ```
//! A level counts once it has stayed for [`DEBOUNCE`], by the time at which it began: that of the kernel, which
//! may be a while before it is heard of. A press under a second is short; it may call an
//! alarm off. Up to three it is medium: too slow for a press that was meant to call off, so it only ever
//! alarms. At three seconds it is long and counts at once. Where the button makes test alarms
//! (`test_hold`), a long press counts when it is let go, since it could still become a hold.
//!
//! A contact that stays down for `stuck_after` is a fault until it is let go.
//!
//! Absent: where the level comes from (`driver::button`), what a press means (`alarm`).

use std::time::{Duration, Instant};

/// How long a level must stay to count.
pub const DEBOUNCE: Duration = Duration::from_millis(25);
/// Under it a press is short.
pub const MEDIUM: Duration = Duration::from_secs(1);
/// From it on a press is long.
pub const LONG: Duration = Duration::from_secs(3);

/// A press that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Press {
    /// Under a second.
    Short,
    /// Under three seconds.
    Medium,
    /// At least three seconds.
    Long,
    /// As long as a test alarm asks for.
    Hold,
}

impl Press {
    /// As it stands in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Medium => "medium",
            Self::Long => "long",
            Self::Hold => "hold",
        }
    }
}

/// What a button has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It was pressed, and was down for so long until the press counted.
    Press(Press, Duration),
    /// It has been down for too long to be true.
    Stuck,
    /// It is up again.
    Free,
}

/// The state of one button.
#[derive(Debug, Clone)]
pub struct Button {
    test_hold: Option<Duration>,
    stuck_after: Duration,
    /// The level that the contact has now, and since when.
    raw: (bool, Option<Instant>),
    down: Option<Instant>,
    /// The press that is going on has counted.
    counted: bool,
    stuck: bool,
}

impl Button {
    /// A button that is up.
    pub fn new(test_hold: Option<Duration>, stuck_after: Duration) -> Self {
        Self {
            test_hold,
            stuck_after,
            raw: (false, None),
            down: None,
            counted: false,
            stuck: false,
        }
    }

    /// The contact can be read since now. One that is down already says nothing of when it was pressed:
    /// that is no press, and may be a stuck button.
    pub fn opened(&mut self, pressed: bool, now: Instant) {
        if pressed {
            self.raw = (true, Some(now));
            self.down = Some(now);
            self.counted = true;
        }
    }

    /// The contact's level is this since `at`. Signs that were due before come first. No [`Self::tick`] may
    /// have gone further than `at`: what is known of the contact is told before time is.
    pub fn level(&mut self, pressed: bool, at: Instant) -> Vec<Sign> {
        let mut signs = self.tick(at);
        if self.raw.0 != pressed {
            self.raw = (pressed, Some(at));
            signs.extend(self.tick(at));
        }
        signs
    }

    /// When [`Self::tick`] has something to say.
    pub fn due(&self) -> Option<Instant> {
        let settles = self.raw.1.filter(|_| self.raw.0 != self.down.is_some());
        let settles = settles.map(|since| since + DEBOUNCE);
        // Let go and not settled yet, it counts no further.
        let down = self.down.filter(|_| self.raw.0);
        let counts = down.filter(|_| !self.counted);
        let counts = counts.map(|since| since + self.test_hold.unwrap_or(LONG));
        let sticks = down.filter(|_| !self.stuck).map(|since| since + self.stuck_after);
        [settles, counts, sticks].into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) -> Vec<Sign> {
        let mut signs = Vec::new();
        if let (true, Some(since)) = (self.raw.0 != self.down.is_some(), self.raw.1)
            && now >= since + DEBOUNCE
        {
            if self.raw.0 {
                self.down = Some(since);
            } else {
                self.let_go(since, &mut signs);
            }
        }
        let Some(since) = self.down else { return signs };
        // What happens after the contact was let go, and has not settled yet, does not count.
        let until = if self.raw.0 { now } else { self.raw.1.unwrap_or(now) };
        let held = until.saturating_duration_since(since);
        let at = self.test_hold.unwrap_or(LONG);
        if !self.counted && held >= at {
            self.counted = true;
            let press = if self.test_hold.is_some() { Press::Hold } else { Press::Long };
            signs.push(Sign::Press(press, held));
        }
        if !self.stuck && held >= self.stuck_after {
            self.stuck = true;
            signs.push(Sign::Stuck);
        }
        signs
    }

    fn let_go(&mut self, at: Instant, signs: &mut Vec<Sign>) {
        let Some(since) = self.down.take() else { return };
        let held = at.saturating_duration_since(since);
        if !std::mem::take(&mut self.counted) {
            let press = match held {
                held if held < MEDIUM => Press::Short,
                held if held < LONG => Press::Medium,
                held if self.test_hold.is_some_and(|hold| held >= hold) => Press::Hold,
                _ => Press::Long,
            };
            signs.push(Sign::Press(press, held));
        }
        if std::mem::take(&mut self.stuck) {
            signs.push(Sign::Free);
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "any instant does to count from")]
mod tests {
    use super::*;

    /// Plays levels at milliseconds, and looks only when it is due, until `end_ms`.
    fn play(button: &mut Button, levels: &[(u64, bool)], end_ms: u64) -> Vec<(u64, Sign)> {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut signs = Vec::new();
        let mut note = |now: Instant, found: Vec<Sign>| {
            let ms = u64::try_from((now - began).as_millis()).unwrap();
            signs.extend(found.into_iter().map(|sign| (ms, sign)));
        };
        let mut levels = levels.iter().peekable();
        loop {
            let next = levels.peek().map_or(at(end_ms), |(ms, _)| at(*ms));
            match button.due().filter(|due| *due <= next) {
                Some(due) => {
                    note(due, button.tick(due));
                    assert!(
                        button.due().is_none_or(|next| next > due),
                        "it would be asked for ever"
                    );
                }
                None => match levels.next() {
                    Some((ms, level)) => note(at(*ms), button.level(*level, at(*ms))),
                    None => return signs,
                },
            }
        }
    }

    fn plain() -> Button {
        Button::new(None, Duration::from_secs(60))
    }

    fn presses(signs: &[(u64, Sign)]) -> Vec<(u64, Press)> {
        let press = |(at, sign): &(u64, Sign)| match sign {
            Sign::Press(press, _) => Some((*at, *press)),
            _ => None,
        };
        signs.iter().filter_map(press).collect()
    }

    #[test]
    fn a_press_is_what_its_length_says() {
        let table = [
            (100, 125, Press::Short),
            (999, 1024, Press::Short),
            (1000, 1025, Press::Medium),
            (2999, 3024, Press::Medium),
            (3000, 3000, Press::Long),
            (50_000, 3000, Press::Long),
        ];
        for (length, counts_at, press) in table {
            let signs = play(&mut plain(), &[(0, true), (length, false)], 100_000);
            assert_eq!(presses(&signs), [(counts_at, press)], "{length} ms");
        }
    }

    #[test]
    fn bouncing_contacts_and_glitches_are_one_press_or_none() {
        let bouncing = [
            (0, true),
            (3, false),
            (5, true),
            (9, false),
            (11, true),
            (300, false),
            (304, true),
            (306, false),
        ];
        assert_eq!(presses(&play(&mut plain(), &bouncing, 5000)), [(331, Press::Short)]);
        let glitches = [(0, true), (10, false), (500, true), (524, false)];
        assert_eq!(play(&mut plain(), &glitches, 5000), []);
        // A gap while it is held does not end the press.
        let gap = [(0, true), (1500, false), (1510, true), (4000, false)];
        assert_eq!(presses(&play(&mut plain(), &gap, 9000)), [(3000, Press::Long)]);
    }

    #[test]
    fn a_button_that_makes_tests_tells_a_long_press_from_a_hold() {
        let button = || Button::new(Some(Duration::from_secs(10)), Duration::from_secs(60));
        for (length, counts_at, press) in [
            (500, 525, Press::Short),
            (4000, 4025, Press::Long),
            (9999, 10_024, Press::Long),
            (12_000, 10_000, Press::Hold),
        ] {
            let signs = play(&mut button(), &[(0, true), (length, false)], 100_000);
            assert_eq!(presses(&signs), [(counts_at, press)], "{length} ms");
        }
    }

    #[test]
    fn a_stuck_button_is_said_once_and_cleared_when_it_is_let_go() {
        let signs = play(&mut plain(), &[(0, true), (90_000, false)], 200_000);
        let faults: Vec<_> = signs.iter().filter(|(_, s)| !matches!(s, Sign::Press(..))).collect();
        assert_eq!(faults, [&(60_000, Sign::Stuck), &(90_025, Sign::Free)]);
        let mut button = plain();
        let signs = play(&mut button, &[(0, true)], 70_000);
        assert_eq!(signs.last(), Some(&(60_000, Sign::Stuck)));
        assert_eq!(button.due(), None);
    }

    #[test]
    fn a_button_that_is_down_from_the_start_is_no_press_but_may_be_stuck() {
        let mut button = plain();
        let now = Instant::now();
        button.opened(true, now);
        assert_eq!(button.tick(now + Duration::from_secs(59)), []);
        assert_eq!(button.tick(now + Duration::from_secs(60)), [Sign::Stuck]);
        let up = now + Duration::from_secs(61);
        assert_eq!(button.level(false, up), []);
        assert_eq!(button.tick(up + DEBOUNCE), [Sign::Free]);
    }

    #[test]
    fn two_presses_are_two() {
        let twice = [(0, true), (100, false), (400, true), (500, false)];
        let signs = play(&mut plain(), &twice, 5000);
        assert_eq!(presses(&signs), [(125, Press::Short), (525, Press::Short)]);
    }
}
