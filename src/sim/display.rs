//! The terminal of the simulator: a line for everything that happens, and a level that moves.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::agent::Happening;
use crate::clock::Clock;
use crate::event::Lane;

/// How often the line with the level is renewed where the output is no terminal.
const PLAIN_LEVEL_EVERY: Duration = Duration::from_secs(1);
/// Loudness at the left end of the bar, dBFS.
const BAR_FLOOR_DBFS: f32 = -60.0;
/// Cells of the bar.
const BAR_CELLS: usize = 20;

/// What was counted until now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Keyphrases heard.
    pub detected: u64,
    /// Events on stable storage.
    pub accepted: u64,
    /// Publishes handed to the network.
    pub published: u64,
    /// Events acknowledged by the broker.
    pub acknowledged: u64,
    /// Events in the outbox.
    pub waiting: u64,
    /// Happenings that came too fast to be shown.
    pub not_shown: u64,
}

/// Writes to `out`; it is a failure of nobody if `out` is closed.
#[derive(Debug)]
pub struct Display<W> {
    out: W,
    clock: Clock,
    began: Instant,
    terminal: bool,
    level_dbfs: f32,
    level_shown: Option<Instant>,
    totals: Totals,
}

impl<W: Write + IsTerminal> Display<W> {
    /// A display that begins to count the seconds now.
    pub fn new(out: W, clock: Clock) -> Self {
        let terminal = out.is_terminal();
        let began = clock.now();
        Self {
            out,
            clock,
            began,
            terminal,
            level_dbfs: BAR_FLOOR_DBFS,
            level_shown: None,
            totals: Totals::default(),
        }
    }

    /// What was counted.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// A line of the simulator's own.
    pub fn line(&mut self, what: &str, detail: &str) {
        let seconds = self.clock.now().duration_since(self.began).as_secs_f64();
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        let _ = writeln!(self.out, "{clear}{seconds:6.1} s  {what:<12} {detail}");
    }

    /// Happenings were lost on the way here.
    pub fn missed(&mut self, count: u64) {
        self.totals.not_shown += count;
    }

    /// Shows what happened.
    pub fn show(&mut self, happening: &Happening) {
        match happening {
            Happening::Listening(input) => self.line("listening", &format!("to {input}")),
            Happening::Level(dbfs) => self.level_dbfs = *dbfs,
            Happening::Detected { phrase, score, .. } => {
                self.totals.detected += 1;
                self.line("HEARD", &format!("\"{phrase}\" (score {score:.2})"));
            }
            Happening::Alarm { alarm, step, test } => {
                let test = if *test { " (test)" } else { "" };
                self.line("ALARM", &format!("{step}{test} {alarm}"));
            }
            Happening::Reading { sensor, quantity, value, unit } => {
                self.line("reading", &format!("{sensor}: {quantity} {value} {unit}"));
            }
            Happening::Threshold { sensor, threshold, exceeded, value, unit } => {
                let what = if *exceeded { "EXCEEDED" } else { "cleared" };
                self.line(what, &format!("{sensor}: {threshold} ({value} {unit})"));
            }
            Happening::Inactivity { detected, explanation } => {
                self.line(if *detected { "INACTIVE" } else { "active" }, explanation);
            }
            Happening::Accepted { id, lane, event_type, sequence } => {
                self.totals.accepted += 1;
                self.line("accepted", &format!("{id} {lane} #{sequence} {event_type}"));
            }
            Happening::Published { id, lane, again } => {
                self.totals.published += 1;
                let again = if *again { " again" } else { "" };
                self.line("published", &format!("{id} {lane}{again}"));
            }
            Happening::Acknowledged { id, lane } => {
                self.totals.acknowledged += 1;
                self.line("acknowledged", &format!("{id} {lane}"));
            }
            Happening::Unconfirmed { id, lane } => {
                self.line("unconfirmed", &format!("{lane} {id}"));
            }
            Happening::Received { id, lane } => self.line("receipt", &format!("{lane} {id}")),
            Happening::Deferred { id, reason } => {
                self.line("refused", &format!("{id} {reason}; offered again later"));
            }
            Happening::Uplink(news) => self.line("uplink", news),
            Happening::Fault { part, problem } => self.line("FAULT", &format!("{part}: {problem}")),
            Happening::Mended(part) => self.line("mended", part),
            // The news say more.
            Happening::Connected | Happening::Disconnected => {}
            Happening::Waiting(depths) => self.totals.waiting = depths.iter().sum(),
        }
        self.level();
    }

    /// The moving line: renewed in place on a terminal, now and then elsewhere.
    fn level(&mut self) {
        let now = self.clock.now();
        let every = if self.terminal { Duration::from_millis(100) } else { PLAIN_LEVEL_EVERY };
        if self.level_shown.is_some_and(|at| now.duration_since(at) < every) {
            return;
        }
        self.level_shown = Some(now);
        let detail = format!(
            "{:>6.1} dBFS {}  waiting {}",
            self.level_dbfs,
            bar(self.level_dbfs),
            self.totals.waiting
        );
        if self.terminal {
            let _ = write!(self.out, "\r\x1b[K           level        {detail}");
            let _ = self.out.flush();
        } else {
            self.line("level", &detail);
        }
    }

    /// The last lines.
    pub fn finish(&mut self) {
        let Totals { detected, accepted, published, acknowledged, waiting, not_shown } =
            self.totals;
        self.line(
            "done",
            &format!(
                "{detected} heard, {accepted} accepted, {published} published, \
                 {acknowledged} acknowledged, {waiting} waiting"
            ),
        );
        if not_shown > 0 {
            self.line("note", &format!("{not_shown} happenings came too fast to be shown"));
        }
    }
}

fn bar(dbfs: f32) -> String {
    let share = ((dbfs - BAR_FLOOR_DBFS) / -BAR_FLOOR_DBFS).clamp(0.0, 1.0);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "0..=20"
    )]
    let full = (share * BAR_CELLS as f32).round() as usize;
    "█".repeat(full) + &"·".repeat(BAR_CELLS - full)
}

/// The name of a lane's topic for people; kept here so that the display needs no forwarder.
pub fn is_event_topic(topic: &str) -> bool {
    Lane::ALL.iter().any(|lane| topic.ends_with(&format!("/events/{lane}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_empty_in_silence_and_full_at_full_scale() {
        assert_eq!(bar(-120.0), "·".repeat(BAR_CELLS));
        assert_eq!(bar(0.0), "█".repeat(BAR_CELLS));
        assert_eq!(bar(f32::NAN), "·".repeat(BAR_CELLS));
    }
}
