//! The thread that speaks to the person beside the device: light and tone, as the alarms and the faults ask.
//!
//! It is told what to say and never asked to wait: a light that cannot be lit or a tone that cannot be
//! played is a fault, tried again every [`RETRY`], and delays nothing. The sound card is open, and tried, only
//! while there is something to hear.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::forwarding::{Change, report};
use super::{BUDGET, Reporter};
use crate::alarm::{Player, Signal};
use crate::clock::Clock;
use crate::config;
use crate::driver::led::Led;
use crate::driver::tone::Tone;
use crate::supervisor::{Stage, Stop, Supervisor};

/// Between two attempts to use a light or an output that failed.
const RETRY: Duration = Duration::from_secs(5);
/// Changes of faults that wait to be reported.
const CHANGES: usize = 8;
/// The part that is at fault when the light cannot be lit.
const LIGHT: &str = "signal.light";
/// The part that is at fault when no tone can be played.
const TONE: &str = "signal.tone";

/// Its name as a service.
pub(super) const SERVICE: &str = "signal";
/// Faults that only the run that raised them can end.
pub(super) const FAULTS: [&str; 2] = [LIGHT, TONE];

/// Starts the thread, where there is a light or a tone. `alarm` is what the alarms want said; what the
/// faults do, the reporter knows.
pub(super) fn start(
    supervisor: &mut Supervisor,
    settings: &config::Signal,
    alarm: watch::Receiver<Signal>,
    reporter: &Reporter,
    clock: Clock,
) {
    let fault = reporter.signal();
    if settings.led.is_none() && settings.tone.is_none() {
        return;
    }
    let (settings, reporter) = (settings.clone(), reporter.clone());
    supervisor.thread(Stage::Uplink, SERVICE, BUDGET, move |stop| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|e| format!("its timer cannot be made: {e}"))?;
        let mut speaker = Speaker {
            led: settings.led.as_deref().map(Led::new),
            output: settings.tone.clone(),
            tone: None,
            player: Player::new(Signal::Off, clock.now()),
            lit: None,
            light_retry: None,
            tone_retry: None,
            faults: Vec::new(),
        };
        let (tell, changes) = mpsc::channel(CHANGES);
        let speaking = speaker.run(alarm.clone(), fault.clone(), tell, clock, stop);
        // Beside it: the outbox may be slow, and the light must not be.
        let reporting = report(reporter.clone(), changes);
        runtime.block_on(async { tokio::join!(speaking, reporting) });
        Ok(())
    });
}

struct Speaker {
    led: Option<Led>,
    output: Option<String>,
    tone: Option<Tone>,
    player: Player,
    /// What the light was told last. `None`: nothing yet, or in vain.
    lit: Option<Lit>,
    light_retry: Option<Instant>,
    tone_retry: Option<Instant>,
    /// Changes of faults to report: part and problem.
    faults: Vec<Change>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lit {
    /// The kernel blinks by itself.
    Blinking(Signal),
    Level(Signal, bool),
}

impl Speaker {
    async fn run(
        &mut self,
        mut alarm: watch::Receiver<Signal>,
        mut fault: watch::Receiver<Signal>,
        tell: mpsc::Sender<Change>,
        clock: Clock,
        mut stop: Stop,
    ) {
        loop {
            let wanted = (*alarm.borrow_and_update()).max(*fault.borrow_and_update());
            let now = clock.now();
            if wanted != self.player.signal() {
                tracing::info!(?wanted, "signal");
                self.player = Player::new(wanted, now);
            }
            let due = self.speak(now).map(|at| at.saturating_duration_since(now));
            for change in std::mem::take(&mut self.faults) {
                let _ = tell.try_send(change);
            }
            tokio::select! {
                Ok(()) = alarm.changed() => {}
                Ok(()) = fault.changed() => {}
                () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => {}
                () = stop.wait() => break,
            }
        }
        self.player = Player::new(Signal::Off, clock.now());
        self.speak(clock.now());
    }

    /// Brings light and tone to what they are to be now; says when that changes.
    fn speak(&mut self, now: Instant) -> Option<Instant> {
        let light = self.light(now);
        let tone = self.sound(now);
        light.into_iter().chain(tone).min()
    }

    fn light(&mut self, now: Instant) -> Option<Instant> {
        let led = self.led.as_ref()?;
        if let Some(retry) = self.light_retry.filter(|retry| *retry > now) {
            return Some(retry);
        }
        let signal = self.player.signal();
        if self.lit == Some(Lit::Blinking(signal)) {
            return None;
        }
        let (on, until) = self.player.light(now);
        let level = Lit::Level(signal, on);
        if self.lit == Some(level) {
            return until;
        }
        let blink = signal.blink();
        let first = !matches!(self.lit, Some(Lit::Level(before, _)) if before == signal);
        let done = (|| {
            if first {
                led.take()?;
                if until.is_some() && led.blink(blink.on_ms, blink.off_ms)? {
                    return Ok(Lit::Blinking(signal));
                }
            }
            led.set(on).map(|()| level)
        })();
        match done {
            Ok(lit) => {
                self.lit = Some(lit);
                if self.light_retry.take().is_some() {
                    self.faults.push((LIGHT, None));
                }
                until.filter(|_| matches!(lit, Lit::Level(..)))
            }
            Err(error) => {
                let error: crate::driver::led::LedError = error;
                if self.light_retry.replace(now + RETRY).is_none() {
                    self.faults.push((LIGHT, Some(error.to_string())));
                }
                self.lit = None;
                self.light_retry
            }
        }
    }

    fn sound(&mut self, now: Instant) -> Option<Instant> {
        let output = self.output.as_deref()?;
        let (hz, until) = self.player.tone(now);
        if until.is_none() {
            self.tone = None;
            return None;
        }
        if self.tone.as_ref().is_some_and(Tone::has_failed) {
            self.tone = None;
        }
        if self.tone.is_none() && self.tone_retry.is_none_or(|retry| retry <= now) {
            match Tone::open(output) {
                Ok(tone) => {
                    self.tone = Some(tone);
                    if self.tone_retry.take().is_some() {
                        self.faults.push((TONE, None));
                    }
                }
                Err(error) => {
                    if self.tone_retry.replace(now + RETRY).is_none() {
                        self.faults.push((TONE, Some(error.to_string())));
                    }
                }
            }
        }
        match &self.tone {
            Some(tone) => {
                tone.set(hz);
                until
            }
            None => self.tone_retry,
        }
    }
}
