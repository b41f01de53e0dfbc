//! The tasks that watch the buttons: one each, which opens the contact, debounces it and hands presses on.
//!
//! A device that is not there or goes away is a fault of the button with a beginning and an end, and is
//! opened again every [`REOPEN`]; so is a button that is stuck. Faults are stored beside the watch, which a slow
//! disk must not keep from a press.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};

use super::alarming::AlarmHandle;
use super::forwarding::{Change, report};
use super::{Activity, BUDGET, Control, Reporter};
use crate::clock::Clock;
use crate::config;
use crate::driver::button::{self, Contact, Levels};
use crate::sensor::button::{Button, Press, Sign};
use crate::supervisor::{Outcome, Stage, Stop, Supervisor};

/// Between two attempts to open a contact.
const REOPEN: Duration = Duration::from_secs(5);
/// Changes of faults that wait to be stored: more than come before a disk that hangs ends the process.
const CHANGES: usize = 32;

/// Their name as services.
pub(super) const SERVICE: &str = "button";

/// The faults that a button can have.
fn parts(button: &config::Button) -> [String; 2] {
    [format!("button.{}", button.name), format!("button.{}.stuck", button.name)]
}

/// The faults that these buttons can have.
pub(super) fn faults(buttons: &[config::Button]) -> Vec<String> {
    buttons.iter().flat_map(parts).collect()
}

/// Starts a task for each button.
pub(super) fn start(
    supervisor: &mut Supervisor,
    buttons: &[config::Button],
    reporter: &Reporter,
    alarms: &AlarmHandle,
    activity: &Activity,
    clock: Clock,
) {
    for settings in buttons {
        let [part, stuck] = parts(settings);
        let watcher = Watcher {
            settings: settings.clone(),
            contact: contact(&settings.contact),
            part,
            stuck,
            reporter: reporter.clone(),
            alarms: alarms.clone(),
            activity: activity.clone(),
            clock,
        };
        supervisor.task(Stage::Source, SERVICE, BUDGET, move |stop| {
            let watcher = watcher.clone();
            async move { watcher.run(stop).await }
        });
    }
}

/// Hands on what somebody does at the simulator.
pub(super) fn start_controls(
    supervisor: &mut Supervisor,
    controls: mpsc::Receiver<Control>,
    alarms: &AlarmHandle,
) {
    const WHO: &str = "simulator";
    let (controls, alarms) = (Arc::new(Mutex::new(controls)), alarms.clone());
    supervisor.task(Stage::Source, "controls", BUDGET, move |mut stop| {
        let (controls, alarms) = (Arc::clone(&controls), alarms.clone());
        async move {
            let mut controls = controls.lock().await;
            loop {
                tokio::select! {
                    Some(control) = controls.recv() => match control {
                        Control::Press(press) => alarms.press(WHO, press, Duration::ZERO).await,
                        Control::Cancel => alarms.cancel(WHO).await,
                    },
                    () = stop.wait() => return Ok(()),
                }
            }
        }
    });
}

fn contact(contact: &config::ButtonContact) -> Contact {
    match contact {
        config::ButtonContact::Gpio { chip, line, active_low } => {
            Contact::Gpio { chip: chip.clone(), line: *line, active_low: *active_low }
        }
        config::ButtonContact::Evdev { device, key } => {
            Contact::Evdev { device: device.clone(), key: *key }
        }
    }
}

#[derive(Debug, Clone)]
struct Watcher {
    settings: config::Button,
    contact: Contact,
    part: String,
    stuck: String,
    reporter: Reporter,
    alarms: AlarmHandle,
    activity: Activity,
    clock: Clock,
}

impl Watcher {
    async fn run(&self, stop: Stop) -> Outcome {
        let (tell, changes) = mpsc::channel(CHANGES);
        let watching = self.watch_for_good(tell, stop);
        tokio::join!(watching, report(self.reporter.clone(), changes));
        Ok(())
    }

    async fn watch_for_good(&self, tell: mpsc::Sender<Change<String>>, mut stop: Stop) {
        let clear = async |part: &String| tell.send((part.clone(), None)).await;
        loop {
            let problem = match button::open(&self.contact, self.clock) {
                Ok((levels, pressed)) => {
                    tracing::info!(button = self.settings.name, "watching the button");
                    let _ = clear(&self.part).await;
                    tokio::select! {
                        problem = self.watch(levels, pressed, &tell) => problem,
                        () = stop.wait() => return,
                    }
                }
                Err(error) => error.to_string(),
            };
            // Nobody knows any more whether it is down.
            let _ = clear(&self.stuck).await;
            let again = format!("{problem}; trying again every {} s", REOPEN.as_secs());
            let _ = tell.send((self.part.clone(), Some(again))).await;
            tokio::select! {
                () = tokio::time::sleep(REOPEN) => {}
                () = stop.wait() => return,
            }
        }
    }

    /// Returns why the contact cannot be read any more.
    async fn watch(
        &self,
        mut levels: Levels,
        pressed: bool,
        tell: &mpsc::Sender<Change<String>>,
    ) -> String {
        let mut button = Button::new(self.settings.test_hold, self.settings.stuck_after);
        button.opened(pressed, self.clock.now());
        loop {
            let due = button.due().map(|due| due.saturating_duration_since(self.clock.now()));
            let (read, until) = tokio::select! {
                read = levels.next() => (read, None),
                () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => {
                    // Whoever comes late finds what has happened meanwhile, and must not take a contact for
                    // down that was let go.
                    let now = self.clock.now();
                    (levels.waiting(), Some(now))
                }
            };
            let read = match read {
                Ok(read) => read,
                Err(error) => return error.to_string(),
            };
            let mut signs: Vec<Sign> =
                read.iter().flat_map(|level| button.level(level.pressed, level.at)).collect();
            // A full read may not be all.
            if let Some(now) = until.filter(|_| read.is_empty()) {
                signs.extend(button.tick(now));
            }
            for sign in signs {
                self.told(sign, tell).await;
            }
        }
    }

    async fn told(&self, sign: Sign, tell: &mpsc::Sender<Change<String>>) {
        let stuck = match sign {
            Sign::Press(press, held) => return self.pressed(press, held).await,
            Sign::Stuck => {
                let seconds = self.settings.stuck_after.as_secs();
                Some(format!("has been down for {seconds} s: it is stuck"))
            }
            Sign::Free => None,
        };
        let _ = tell.send((self.stuck.clone(), stuck)).await;
    }

    async fn pressed(&self, press: Press, held: Duration) {
        let (button, press_name) = (&self.settings.name, press.as_str());
        tracing::warn!(button, press = press_name, held_ms = held.as_millis(), "pressed");
        self.activity.sign(button, false);
        self.alarms.press(button, press, held).await;
    }
}
