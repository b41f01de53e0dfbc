//! How many bytes of the lanes below alerts may be under way: what is under way stands before an
//! alert, in our buffer, in the kernel, in a modem's queue, and nothing can overtake it there.
//!
//! At first, and for ever on a slow link, [`FLOOR`]. Where PUBACKs come back promptly the queue is
//! short whatever its bytes, and the allowance grows by what was acknowledged, which doubles it every
//! round trip; where they come back late it falls. *Late* is measured against the quickest answer of
//! this connection, so that a long way is not taken for a slow one.
//!
//! This bounds what socket options cannot: a small send buffer ends at the kernel, and TLS, proxies and
//! radio modems keep queues of their own.
//!
//! Source: the idea is that of TCP Vegas (Brakmo and Peterson, 1995), on publishes instead of segments.

use std::time::Duration;

/// What may always be under way: a second of a 64 kbit/s link.
pub(super) const FLOOR: usize = 8 * 1024;
/// More would not fill any link better: a window of the largest events.
const CEILING: usize = 8 * 1024 * 1024;
/// Answers no later than this behind the quickest one let the allowance grow.
const PROMPT: Duration = Duration::from_millis(300);
/// Answers later than this behind the quickest one shrink it.
const LATE: Duration = Duration::from_millis(700);

/// The allowance of one connection.
#[derive(Debug)]
pub(super) struct Pace {
    allowance: usize,
    quickest: Option<Duration>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { allowance: FLOOR, quickest: None }
    }
}

impl Pace {
    /// Whether `more` bytes may join those under way. One publish may always be, however large.
    pub(super) fn allows(&self, under_way: usize, more: usize) -> bool {
        under_way == 0 || under_way.saturating_add(more) <= self.allowance
    }

    /// A publish of so many bytes was acknowledged so long after it was sent.
    pub(super) fn answered(&mut self, bytes: usize, after: Duration) {
        let quickest = self.quickest.map_or(after, |quickest| quickest.min(after));
        self.quickest = Some(quickest);
        match after - quickest {
            prompt if prompt <= PROMPT => self.allowance = (self.allowance + bytes).min(CEILING),
            late if late > LATE => self.allowance = (self.allowance * 3 / 4).max(FLOOR),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link of so many bytes a second and this round trip, kept full of 700-byte publishes. Returns
    /// the most bytes that were under way in the second half.
    fn most_under_way(bytes_per_s: f64, round_trip_s: f64) -> usize {
        let mut pace = Pace::default();
        let (mut now, mut free_at, mut under_way, mut most) = (0.0f64, 0.0f64, 0usize, 0);
        let mut queue = std::collections::VecDeque::new();
        for step in 0..4000 {
            while pace.allows(under_way, 700) && queue.len() < 1000 {
                under_way += 700;
                free_at = free_at.max(now) + 700.0 / bytes_per_s;
                queue.push_back((now, free_at + round_trip_s));
            }
            if step > 2000 {
                most = most.max(under_way);
            }
            let (sent, answered) = queue.pop_front().expect("one is always allowed");
            now = answered;
            under_way -= 700;
            pace.answered(700, Duration::from_secs_f64(now - sent));
        }
        most
    }

    #[test]
    fn a_slow_link_keeps_the_floor_and_a_fast_one_is_filled() {
        assert!(most_under_way(8_000.0, 0.2) <= FLOOR);
        assert!(most_under_way(8_000.0, 0.7) <= FLOOR + 4096, "a long way is no excuse");
        assert!(most_under_way(1_250_000.0, 0.1) > 100_000);
        assert!(most_under_way(50_000_000.0, 0.0001) == 700_000, "the whole window");
    }

    #[test]
    fn one_publish_may_always_go_and_late_answers_take_back_what_was_allowed() {
        let mut pace = Pace::default();
        assert!(pace.allows(0, 60_000) && !pace.allows(1, FLOOR));
        for _ in 0..100 {
            pace.answered(10_000, Duration::from_millis(10));
        }
        assert!(pace.allows(500_000, 1));
        for _ in 0..100 {
            pace.answered(10_000, Duration::from_secs(2));
        }
        assert!(!pace.allows(FLOOR, 1));
    }
}
