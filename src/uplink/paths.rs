//! Which of several URLs the next connection uses, and when the first one is asked whether it is back.
//!
//! # Terms
//! A *path* is a URL, by its place in the configuration: 0 is the first and the wanted one, the others are
//! fallbacks. A *probe* connects to the first path while a session stands on another.
//!
//! # Rules
//! - A path that has had a session is left by the first attempt that fails [`PATIENCE`] or more after it
//!   went down, and so is the first path at the start; the next one is then tried at once. A path that has had no
//!   session is tried once, and the attempt after it waits. After the last comes the first. A
//!   session shorter than [`HELD`] counts as an attempt without one.
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

/// How long a path that once worked must be down to be left: longer than a hiccup, shorter than an alarm
/// should wait.
const PATIENCE: Duration = Duration::from_secs(5);
/// A session that lasted so long shows that its path works.
const HELD: Duration = Duration::from_secs(30);
/// Before a probe: at least, and at most three times as long while no return has failed.
const PROBE_PAUSE: Duration = Duration::from_secs(60);
/// How often the pause doubles at most: 2⁵ × 2 minutes is about an hour.
const DOUBLINGS_MAX: u32 = 5;

/// The choice of the path. Synchronous; time and chance are handed in.
#[derive(Debug)]
pub struct Paths {
    count: usize,
    current: usize,
    /// Since when attempts on the current path have brought no session that held.
    down_since: Option<Instant>,
    /// A session has stood on the current path since it was chosen, or it is the first at the start.
    worked: bool,
    /// The path that was left when the first one answered a probe.
    left: Option<usize>,
    /// Returns to the first path in a row that failed.
    failed_returns: u32,
    probe_at: Option<Instant>,
    probe_pause: Duration,
}

/// What follows from an attempt or a session that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The same path, after the backoff's wait.
    Again,
    /// Another path, after the backoff's wait.
    Other,
    /// Another path, at once: it has not been asked lately, or it worked a moment ago.
    OtherAtOnce,
}

impl Paths {
    /// For `count` paths, of which there is at least one.
    pub fn new(count: usize) -> Self {
        Self {
            count: count.max(1),
            current: 0,
            down_since: None,
            worked: true,
            left: None,
            failed_returns: 0,
            probe_at: None,
            probe_pause: PROBE_PAUSE,
        }
    }

    /// Probes after a pause of `least` to three times as much, instead of one to three minutes.
    pub fn probing_after(mut self, least: Duration) -> Self {
        self.probe_pause = least;
        self
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
    pub fn failed(&mut self, now: Instant) -> Next {
        self.probe_at = None;
        if let Some(left) = self.left.take() {
            self.failed_returns = (self.failed_returns + 1).min(DOUBLINGS_MAX);
            self.choose(left);
            self.worked = true;
            return Next::OtherAtOnce;
        }
        let down_since = *self.down_since.get_or_insert(now);
        let patient = self.worked && now.saturating_duration_since(down_since) < PATIENCE;
        if self.count == 1 || patient {
            return Next::Again;
        }
        let worked = self.worked;
        self.choose((self.current + 1) % self.count);
        if worked { Next::OtherAtOnce } else { Next::Other }
    }

    /// The session on the current path, which lasted so long, is over without our wish.
    pub fn lost(&mut self, now: Instant, lasted: Duration) -> Next {
        self.probe_at = None;
        if lasted < HELD {
            return self.failed(now);
        }
        self.down_since = Some(now);
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
        self.down_since = None;
        self.worked = false;
        self.probe_at = None;
    }

    fn plan_probe(&mut self, now: Instant, rng: &mut Rng) {
        self.probe_at = (!self.on_first()).then(|| {
            let pause = self.probe_pause.mul_f64(1.0 + 2.0 * rng.unit());
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
        assert_eq!(paths.failed(now - PATIENCE), Next::Again);
        assert_eq!(paths.failed(now), Next::OtherAtOnce);
        paths.connected(now, rng);
        paths
    }

    #[test]
    fn the_first_is_left_after_five_seconds_then_each_is_tried_once_in_turn() {
        let (begin, _) = begin();
        let mut paths = Paths::new(3);
        let mut story = Vec::new();
        for at_s in [0, 2, 4, 6, 6, 20, 30, 40] {
            let path = paths.current();
            story.push((path, paths.failed(begin + S(at_s))));
        }
        use Next::{Again, Other, OtherAtOnce};
        let first = [(0, Again), (0, Again), (0, Again), (0, OtherAtOnce)];
        assert_eq!(story[..4], first);
        assert_eq!(story[4..], [(1, Other), (2, Other), (0, Other), (1, Other)]);
    }

    #[test]
    fn one_path_is_never_left() {
        let mut paths = Paths::new(1);
        let (now, mut rng) = begin();
        assert!((0..100).all(|s| paths.failed(now + S(s)) == Next::Again));
        paths.connected(now, &mut rng);
        assert_eq!(paths.poll_probe(), None);
    }

    #[test]
    fn a_path_that_worked_is_left_only_when_it_stays_down() {
        let (now, mut rng) = begin();
        let mut paths = on_fallback(now, &mut rng);
        assert_eq!(paths.lost(now, S(3600)), Next::Again);
        assert_eq!(paths.failed(now + S(4)), Next::Again);
        paths.connected(now + S(5), &mut rng);
        assert_eq!(paths.lost(now + S(100), S(95)), Next::Again, "it held: all is well again");
        paths.connected(now + S(101), &mut rng);
        let short = paths.lost(now + S(106), S(5));
        assert_eq!(short, Next::OtherAtOnce, "a short session does not count");
        assert!(paths.on_first(), "after the last comes the first");
    }

    #[test]
    fn the_first_is_probed_while_a_session_stands_on_a_fallback_and_only_then() {
        let (now, mut rng) = begin();
        let mut paths = on_fallback(now, &mut rng);
        let due = paths.poll_probe().unwrap();
        assert!((now + PROBE_PAUSE..=now + 3 * PROBE_PAUSE).contains(&due));
        assert!(!paths.probe_due(now));
        assert!(paths.probe_due(due));
        assert_eq!(paths.poll_probe(), None, "one probe at a time");
        paths.probe_failed(due, &mut rng);
        assert!(paths.poll_probe().unwrap() > due);
        assert_eq!(paths.current(), 1, "a probe that fails changes nothing");
        paths.lost(due, S(60));
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
        assert_eq!(paths.lost(now + S(60), S(60)), Next::Again);
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
                (PROBE_PAUSE * factor..=3 * PROBE_PAUSE * factor).contains(&pause),
                "{round}: {pause:?}"
            );
            now += pause;
            assert!(paths.probe_due(now));
            paths.probe_answered();
            assert_eq!(
                paths.failed(now),
                Next::OtherAtOnce,
                "no wait for what worked a moment ago"
            );
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
