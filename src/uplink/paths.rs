//! Which of several URLs the next connection uses, and when the first one is asked whether it is back.
//!
//! # Terms
//! A *path* is a URL, by its place in the configuration: 0 is the first and the wanted one, the others are
//! fallbacks. A *probe* connects to the first path while a session stands on another.
//!
//! # Rules
//! - A path that has had a session is tried [`ATTEMPTS`] times in a row before the next one's turn comes,
//!   and so is the first path at the start; a path that has not is tried once. After the last comes
//!   the first. A session shorter than [`HELD`] counts as an attempt without one.
//! - While a session stands on a fallback, the first path is probed every one to three minutes. The
//!   session goes on meanwhile; only when the probe has its transport does the session leave in good
//!   order and move over, onto the very connection of the probe.
//! - If the first path then takes no session (something answers there, but no broker), we go back
//!   to the fallback without a wait, and the pause before the next probe doubles, up to an hour.
//!   A session on the first path that held starts it over.
//!
//! The pauses are drawn, so that a fleet does not return as one: see the test.
//!
//! There is nothing to configure here: how patient to be follows from what an attempt costs, and the
//! waits between attempts are the backoff's.

use std::time::{Duration, Instant};

use crate::clock::Rng;

/// Failures in a row after which a path that once worked is left.
const ATTEMPTS: u32 = 3;
/// A session that lasted so long shows that its path works.
const HELD: Duration = Duration::from_secs(30);
/// Before a probe: at least.
const PROBE_MIN: Duration = Duration::from_secs(60);
/// Before a probe: at most, while no return has failed.
const PROBE_MAX: Duration = Duration::from_secs(180);
/// How often the pause doubles at most: 2⁵ × 2 minutes is about an hour.
const DOUBLINGS_MAX: u32 = 5;

/// The choice of the path. Synchronous; time and chance are handed in.
#[derive(Debug)]
pub struct Paths {
    count: usize,
    current: usize,
    /// Attempts in a row on the current path that brought no session that held.
    failures: u32,
    /// A session has stood on the current path since it was chosen, or it is the first at the start.
    worked: bool,
    /// The path that was left when the first one answered a probe.
    left: Option<usize>,
    /// Returns to the first path in a row that failed.
    failed_returns: u32,
    probe_at: Option<Instant>,
}

/// What follows from an attempt or a session that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The same path, after the backoff's wait.
    Again,
    /// Another path, after the backoff's wait.
    Other,
    /// Back to the path that worked a moment ago, at once.
    BackAtOnce,
}

impl Paths {
    /// For `count` paths, of which there is at least one.
    pub fn new(count: usize) -> Self {
        Self {
            count: count.max(1),
            current: 0,
            failures: 0,
            worked: true,
            left: None,
            failed_returns: 0,
            probe_at: None,
        }
    }

    /// The path of the next attempt, or of the session that stands.
    pub fn current(&self) -> usize {
        self.current
    }

    /// Whether that is the first one.
    pub fn on_first(&self) -> bool {
        self.current == 0
    }

    /// A session stands on the current path.
    pub fn connected(&mut self, now: Instant, rng: &mut Rng) {
        self.worked = true;
        self.left = None;
        self.plan_probe(now, rng);
    }

    /// An attempt brought no session.
    pub fn failed(&mut self) -> Next {
        self.probe_at = None;
        if let Some(left) = self.left.take() {
            self.failed_returns = (self.failed_returns + 1).min(DOUBLINGS_MAX);
            self.choose(left);
            self.worked = true;
            return Next::BackAtOnce;
        }
        self.failures = self.failures.saturating_add(1);
        if self.count == 1 || (self.worked && self.failures < ATTEMPTS) {
            return Next::Again;
        }
        self.choose((self.current + 1) % self.count);
        Next::Other
    }

    /// The session on the current path, which lasted so long, is over without our wish.
    pub fn lost(&mut self, lasted: Duration) -> Next {
        self.probe_at = None;
        if lasted < HELD {
            return self.failed();
        }
        self.failures = 0;
        if self.on_first() {
            self.failed_returns = 0;
        }
        Next::Again
    }

    /// When [`Self::probe_due`] turns true; only while a session stands on a fallback.
    pub fn poll_probe(&self) -> Option<Instant> {
        self.probe_at
    }

    /// Whether the first path is to be probed now. Asking starts the probe.
    pub fn probe_due(&mut self, now: Instant) -> bool {
        self.probe_at.take_if(|at| *at <= now).is_some()
    }

    /// The probe got no transport.
    pub fn probe_failed(&mut self, now: Instant, rng: &mut Rng) {
        self.plan_probe(now, rng);
    }

    /// The probe got a transport: the session is to leave, and the next attempt is on the first path.
    pub fn probe_answered(&mut self) {
        let left = self.current;
        self.choose(0);
        self.left = Some(left);
    }

    fn choose(&mut self, path: usize) {
        self.current = path;
        self.failures = 0;
        self.worked = false;
        self.probe_at = None;
    }

    fn plan_probe(&mut self, now: Instant, rng: &mut Rng) {
        self.probe_at = (!self.on_first()).then(|| {
            let pause = PROBE_MIN + (PROBE_MAX - PROBE_MIN).mul_f64(rng.unit());
            now + pause * 2u32.pow(self.failed_returns)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[allow(clippy::disallowed_methods, reason = "an Instant has no other beginning")]
    fn begin() -> (Instant, Rng) {
        (Instant::now(), Rng::from_seed(1))
    }

    /// On the second of two paths, connected.
    fn on_fallback(now: Instant, rng: &mut Rng) -> Paths {
        let mut paths = Paths::new(2);
        while paths.on_first() {
            paths.failed();
        }
        paths.connected(now, rng);
        paths
    }

    #[test]
    fn the_first_is_tried_three_times_and_each_fallback_once_then_round_again() {
        let mut paths = Paths::new(3);
        let mut order = Vec::new();
        for _ in 0..8 {
            order.push(paths.current());
            paths.failed();
        }
        assert_eq!(order, [0, 0, 0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn one_path_is_never_left() {
        let mut paths = Paths::new(1);
        assert!((0..100).all(|_| paths.failed() == Next::Again));
        let (now, mut rng) = begin();
        paths.connected(now, &mut rng);
        assert_eq!(paths.poll_probe(), None);
    }

    #[test]
    fn a_path_that_worked_is_left_only_after_three_failures_or_short_sessions() {
        let (now, mut rng) = begin();
        let mut paths = on_fallback(now, &mut rng);
        assert_eq!(paths.lost(S(3600)), Next::Again);
        assert_eq!(paths.failed(), Next::Again);
        paths.connected(now, &mut rng);
        assert_eq!(paths.lost(S(5)), Next::Again, "a short session counts as a failure");
        assert_eq!(paths.failed(), Next::Other);
        assert!(paths.on_first(), "after the last comes the first");
    }

    #[test]
    fn the_first_is_probed_while_a_session_stands_on_a_fallback_and_only_then() {
        let (now, mut rng) = begin();
        let mut paths = on_fallback(now, &mut rng);
        let due = paths.poll_probe().unwrap();
        assert!((now + PROBE_MIN..=now + PROBE_MAX).contains(&due));
        assert!(!paths.probe_due(now));
        assert!(paths.probe_due(due));
        assert_eq!(paths.poll_probe(), None, "one probe at a time");
        paths.probe_failed(due, &mut rng);
        assert!(paths.poll_probe().unwrap() > due);
        assert_eq!(paths.current(), 1, "a probe that fails changes nothing");
        paths.lost(S(60));
        assert_eq!(paths.poll_probe(), None);
    }

    #[test]
    fn an_answered_probe_moves_to_the_first_and_a_held_session_there_ends_the_story() {
        let (now, mut rng) = begin();
        let mut paths = on_fallback(now, &mut rng);
        paths.probe_answered();
        assert!(paths.on_first());
        paths.connected(now, &mut rng);
        assert_eq!(paths.poll_probe(), None);
        assert_eq!(paths.lost(S(60)), Next::Again);
        assert!(paths.on_first());
    }

    #[test]
    fn a_first_path_that_answers_and_takes_no_session_is_asked_ever_more_rarely() {
        let (mut now, mut rng) = begin();
        let mut paths = on_fallback(now, &mut rng);
        for round in 0..8u32 {
            let pause = paths.poll_probe().unwrap() - now;
            let factor = 2u32.pow(round.min(DOUBLINGS_MAX));
            assert!(
                (PROBE_MIN * factor..=PROBE_MAX * factor).contains(&pause),
                "{round}: {pause:?}"
            );
            now += pause;
            assert!(paths.probe_due(now));
            paths.probe_answered();
            assert_eq!(paths.failed(), Next::BackAtOnce, "no wait for what worked a moment ago");
            assert_eq!(paths.current(), 1);
            paths.connected(now, &mut rng);
        }
    }

    /// Most arrivals within any second, of devices that probe until `back`, and then stay.
    fn peak_of_return(devices: u64, back: Duration, jitter: bool) -> usize {
        let (begin, _) = begin();
        let mut arrivals: Vec<Instant> = Vec::new();
        for seed in 0..devices {
            let mut rng = Rng::from_seed(if jitter { seed } else { 1 });
            let mut paths = on_fallback(begin, &mut rng);
            loop {
                let at = paths.poll_probe().unwrap();
                assert!(paths.probe_due(at));
                arrivals.push(at);
                if at >= begin + back {
                    break;
                }
                paths.probe_failed(at, &mut rng);
            }
        }
        super::super::backoff::peak_per_second(&mut arrivals)
    }

    #[test]
    fn ten_thousand_devices_return_to_the_first_path_at_no_more_than_two_percent_a_second() {
        for back_s in [0, 30, 600, 3600] {
            let peak = peak_of_return(10_000, S(back_s), true);
            println!("first path back after {back_s} s: at most {peak} connects a second");
            assert!(peak <= 200, "{peak}");
        }
        assert_eq!(peak_of_return(10_000, S(600), false), 10_000, "the control returns as one");
    }
}
