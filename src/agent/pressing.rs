//! The tasks that watch the buttons: one each, which opens the contact, debounces it and hands presses on.
//!
//! A device that is not there or goes away is a fault of the button with a beginning and an end, and is
//! opened again every [`REOPEN`]; so is a button that is stuck.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};

use super::alarming::AlarmHandle;
use super::{Activity, BUDGET, Control, Reporter};
use crate::clock::Clock;
use crate::config;
use crate::driver::button::{self, Contact, Levels};
use crate::sensor::button::{Button, Press, Sign};
use crate::supervisor::{Outcome, Stage, Stop, Supervisor};

/// Between two attempts to open a contact.
const REOPEN: Duration = Duration::from_secs(5);

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
        let watcher = Watcher {
            settings: settings.clone(),
            contact: contact(&settings.contact),
            part: format!("button.{}", settings.name),
            stuck: format!("button.{}.stuck", settings.name),
            reporter: reporter.clone(),
            alarms: alarms.clone(),
            activity: activity.clone(),
            clock,
        };
        supervisor.task(Stage::Source, "button", BUDGET, move |stop| {
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
    async fn run(&self, mut stop: Stop) -> Outcome {
        loop {
            let problem = match button::open(&self.contact) {
                Ok((levels, pressed)) => {
                    tracing::info!(button = self.settings.name, "watching the button");
                    self.reporter.clear(&self.part).await;
                    tokio::select! {
                        problem = self.watch(levels, pressed) => problem,
                        () = stop.wait() => return Ok(()),
                    }
                }
                Err(error) => error.to_string(),
            };
            self.reporter.clear(&self.stuck).await;
            let again = format!("{problem}; trying again every {} s", REOPEN.as_secs());
            self.reporter.raise(&self.part, &again).await;
            tokio::select! {
                () = tokio::time::sleep(REOPEN) => {}
                () = stop.wait() => return Ok(()),
            }
        }
    }

    /// Returns why the contact cannot be read any more.
    async fn watch(&self, mut levels: Levels, pressed: bool) -> String {
        let mut button = Button::new(self.settings.test_hold, self.settings.stuck_after);
        button.opened(pressed, self.clock.now());
        loop {
            let now = self.clock.now();
            let due = button.due().map(|due| due.saturating_duration_since(now));
            let signs = tokio::select! {
                read = levels.next() => match read {
                    Ok(read) => {
                        let now = self.clock.now();
                        read.into_iter().flat_map(|level| button.level(level, now)).collect()
                    }
                    Err(error) => return error.to_string(),
                },
                () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => {
                    button.tick(self.clock.now())
                }
            };
            for sign in signs {
                self.told(sign).await;
            }
        }
    }

    async fn told(&self, sign: Sign) {
        match sign {
            Sign::Press(press, held) => self.pressed(press, held).await,
            Sign::Stuck => {
                let seconds = self.settings.stuck_after.as_secs();
                let problem = format!("has been down for {seconds} s: it is stuck");
                self.reporter.raise(&self.stuck, &problem).await;
            }
            Sign::Free => self.reporter.clear(&self.stuck).await,
        }
    }

    async fn pressed(&self, press: Press, held: Duration) {
        let (button, press_name) = (&self.settings.name, press.as_str());
        tracing::warn!(button, press = press_name, held_ms = held.as_millis(), "pressed");
        self.activity.sign(button, false);
        self.alarms.press(button, press, held).await;
    }
}
