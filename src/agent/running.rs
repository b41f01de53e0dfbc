//! The parts of a running agent that the configuration decides on: checked together, started together, and
//! exchanged one by one when it has changed.
//!
//! | what has changed | what becomes of it |
//! |---|---|
//! | `[alarm]`, `[commands]`, `[lanes]`, `[outbox]`, routes, heartbeat | the part goes on under other rules |
//! | `[signal]`, `[[button]]`, `[[sensor]]`, `[activity]`, `[audio]`, `[voice]`, `[ops]`, `[uplink]`, `ingest.socket` | the part is stopped and started |
//! | `device.id`, `device.type_prefix`, `outbox.path` | nothing, until hark is started anew: it says so |
//!
//! # Invariants
//! - Everything that can be wrong is found before anything is stopped.
//! - The outbox, the alarms and the dialler are never stopped. What is open stays open, with its deadline.
//! - A part whose settings are the same is not touched.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;

use super::alarming::{AlarmHandle, Rules};
use super::board::Board;
use super::listening::{self, Encore, ListenerFactory};
use super::sensing::{self, Clocks};
use super::serving::{self, bind_ingest, start_ingest, start_ops};
use super::{Activity, PATIENCE, Reporter};
use super::{activity, bounds, forwarding, helping, pressing, report_late, signalling};
use crate::alarm::Signal;
use crate::audio::Loudness;
use crate::cli::{Failure, exit};
use crate::clock::Rng;
use crate::config::{AudioInput, Config};
use crate::driver::host;
use crate::driver::ingest::{self, Route};
use crate::driver::outbox_writer::OutboxHandle;
use crate::supervisor::Supervisor;

/// What the parts need, checked.
pub(super) struct Plans {
    uplink: forwarding::Plan,
    listening: Listening,
    sensing: Option<sensing::Plan>,
    pub(super) rules: Rules,
    watching: Option<activity::Plan>,
}

/// What is to become of the detector.
enum Listening {
    /// It goes on.
    AsBefore,
    To(Option<listening::Plan>),
}

impl Plans {
    /// Everything that can be wrong with the installation is found here, and nothing is started. Blocks
    /// while weights are loaded.
    ///
    /// `encore`: files to play after the one that the configuration names. `before`: what a running agent
    /// has; what it listens to and for is not loaded again if it is the same.
    ///
    /// # Errors
    /// 78 or 74: a secret, a keyphrase, the weights or a file is not usable.
    pub(super) fn new(
        config: &Config,
        device: &str,
        encore: Encore,
        listener: &ListenerFactory,
        before: Option<&Config>,
    ) -> Result<Self, Failure> {
        let uplink = forwarding::plan(config, device)?;
        let same = before.is_some_and(|before| hears_the_same(before, config));
        let listening = match same {
            true => Listening::AsBefore,
            false => Listening::To(listening::plan(config, encore, listener)?),
        };
        let sensing = sensing::plan(config)?;
        let zone = host::zone(&config.device.timezone)
            .map_err(|e| Failure::new(exit::CONFIG, format!("device.timezone: {e}")))?;
        let watching = activity::plan(config, &zone);
        Ok(Self { uplink, listening, sensing, rules: Rules::new(config, zone), watching })
    }
}

fn hears_the_same(before: &Config, now: &Config) -> bool {
    before.audio == now.audio
        && before.voice == now.voice
        && before.alarm.on_keyphrase == now.alarm.on_keyphrase
}

/// What every part is joined to, whatever its settings.
pub(super) struct Joints {
    pub(super) outbox: OutboxHandle,
    pub(super) board: Board,
    pub(super) reporter: Reporter,
    pub(super) alarms: AlarmHandle,
    pub(super) activity: Activity,
    pub(super) links: forwarding::Links,
    pub(super) signal: watch::Sender<Signal>,
    /// What the ingest socket gives access to.
    pub(super) services: ingest::Services,
    pub(super) routes: watch::Sender<Vec<Route>>,
    pub(super) heartbeat: watch::Sender<Duration>,
    pub(super) clocks: Clocks,
    pub(super) rng: Rng,
}

/// The running parts and the settings that are in force.
pub(super) struct Running {
    pub(super) supervisor: Supervisor,
    pub(super) joints: Joints,
    pub(super) config: Config,
    rules: Rules,
    watching: Option<activity::Plan>,
    credentials: u64,
    loudness: Arc<Loudness>,
}

/// What an exchange has brought: each part, and for how long it was not there.
pub(super) type Exchanged = Vec<(&'static str, Duration)>;

impl Running {
    /// Starts all of it but what the supervisor runs already: outbox, alarms, buttons, light and tone.
    ///
    /// # Errors
    /// 69: the ingest socket cannot be made.
    pub(super) async fn start(
        supervisor: Supervisor,
        joints: Joints,
        config: Config,
        plans: Plans,
    ) -> Result<Self, Failure> {
        let Plans { uplink, listening, sensing, rules, watching } = plans;
        let (credentials, loudness) = (uplink.credentials(), Arc::default());
        let watched = watching.clone();
        let mut running =
            Self { supervisor, joints, config, rules, watching, credentials, loudness };
        running.start_uplink(uplink);
        if let Some(path) = running.config.ingest.socket.clone() {
            let listener = bind_ingest(&path).await?;
            running.start_ingest(path, listener);
        }
        running.start_ops();
        running.start_listening(listening);
        running.start_watching(watched);
        running.start_sensing(sensing);
        Ok(running)
    }

    /// Puts other settings in force.
    ///
    /// # Errors
    /// The new ingest socket cannot be made; nothing has changed.
    pub(super) async fn exchange(
        &mut self,
        config: Config,
        plans: Plans,
    ) -> Result<Exchanged, Failure> {
        let socket = self.other_socket(&config).await?;
        let Plans { uplink, listening, sensing, rules, watching } = plans;
        let before = std::mem::replace(&mut self.config, config);
        let mut exchanged = Exchanged::new();
        self.set_rules(&before, rules).await;
        if before.signal != self.config.signal {
            let start = |running: &mut Self| running.start_signal();
            self.exchange_one(&mut exchanged, &[signalling::SERVICE], start).await;
            self.clear(signalling::FAULTS).await;
        }
        if before.buttons != self.config.buttons {
            let start = |running: &mut Self| running.start_buttons();
            self.exchange_one(&mut exchanged, &[pressing::SERVICE], start).await;
            let now = pressing::faults(&self.config.buttons);
            self.clear_gone(pressing::faults(&before.buttons), &now).await;
        }
        if self.watching != watching {
            self.watching.clone_from(&watching);
            if watching.is_none() {
                self.joints.activity.close();
            }
            let start = |running: &mut Self| running.start_watching(watching);
            self.exchange_one(&mut exchanged, &[activity::SERVICE], start).await;
        }
        if before.sensors != self.config.sensors {
            let start = |running: &mut Self| running.start_sensing(sensing);
            self.exchange_one(&mut exchanged, &sensing::SERVICES, start).await;
            let now = sensing::faults(&self.config.sensors);
            self.clear_gone(sensing::faults(&before.sensors), &now).await;
        }
        if matches!(listening, Listening::To(_)) {
            let start = |running: &mut Self| running.start_listening(listening);
            self.exchange_one(&mut exchanged, &[listening::SERVICE], start).await;
            if self.config.audio == AudioInput::None {
                self.clear([listening::MICROPHONE]).await;
            }
        }
        if before.ops.listen != self.config.ops.listen {
            let start = |running: &mut Self| running.start_ops();
            self.exchange_one(&mut exchanged, &[serving::OPS], start).await;
            self.clear([serving::OPS]).await;
        }
        if before.ingest.socket != self.config.ingest.socket {
            let start = |running: &mut Self| {
                if let Some((path, listener)) = socket {
                    running.start_ingest(path, listener);
                }
            };
            self.exchange_one(&mut exchanged, &[serving::INGEST], start).await;
        }
        if self.reaches_otherwise(&before, uplink.credentials()) {
            self.credentials = uplink.credentials();
            let start = |running: &mut Self| running.start_uplink(uplink);
            self.exchange_one(&mut exchanged, &[forwarding::SERVICE], start).await;
            self.clear(forwarding::FAULTS).await;
        }
        Ok(exchanged)
    }

    /// Made before the old one is given up.
    async fn other_socket(
        &self,
        config: &Config,
    ) -> Result<Option<(PathBuf, UnixListener)>, Failure> {
        match &config.ingest.socket {
            Some(path) if self.config.ingest.socket.as_ref() != Some(path) => {
                Ok(Some((path.clone(), bind_ingest(path).await?)))
            }
            _ => Ok(None),
        }
    }

    /// What can change without anybody being stopped.
    async fn set_rules(&mut self, before: &Config, rules: Rules) {
        if bounds(before) != bounds(&self.config)
            && let Err(error) = self.joints.outbox.bound(bounds(&self.config)).await
        {
            tracing::error!("the outbox keeps its old bounds: {error}");
        }
        if self.rules != rules {
            self.rules.clone_from(&rules);
            self.joints.alarms.set(rules).await;
        }
        self.joints.routes.send_replace(helping::routes(&self.config));
        let interval = self.config.ops.heartbeat_interval;
        let other = |was: &mut Duration| std::mem::replace(was, interval) != interval;
        self.joints.heartbeat.send_if_modified(other);
    }

    fn reaches_otherwise(&self, before: &Config, credentials: u64) -> bool {
        before.uplink != self.config.uplink
            || before.receipts != self.config.receipts
            || before.commands.enabled != self.config.commands.enabled
            || self.credentials != credentials
    }

    /// Stops services one after the other, and starts what takes their place.
    async fn exchange_one(
        &mut self,
        exchanged: &mut Exchanged,
        services: &[&'static str],
        start: impl FnOnce(&mut Self),
    ) {
        let began = self.joints.clocks.clock.now();
        for service in services {
            report_late(self.supervisor.stop_service(service, PATIENCE).await);
        }
        start(self);
        let gap = self.joints.clocks.clock.now().saturating_duration_since(began);
        exchanged.extend(services.first().map(|service| (*service, gap)));
    }

    async fn clear(&self, faults: impl IntoIterator<Item = impl AsRef<str>>) {
        for fault in faults {
            self.joints.reporter.clear(fault.as_ref()).await;
        }
    }

    /// Faults of what is there no longer.
    async fn clear_gone(&self, before: Vec<String>, now: &[String]) {
        self.clear(before.into_iter().filter(|part| !now.contains(part))).await;
    }

    fn start_uplink(&mut self, plan: forwarding::Plan) {
        let Joints { links, outbox, reporter, alarms, clocks, rng, .. } = &mut self.joints;
        let wires = forwarding::Wires {
            outbox: outbox.clone(),
            reporter: reporter.clone(),
            alarms: alarms.clone(),
            clock: clocks.clock,
            rng: rng.fork(),
        };
        forwarding::start(&mut self.supervisor, plan, links, wires);
    }

    fn start_ingest(&mut self, path: PathBuf, listener: UnixListener) {
        start_ingest(&mut self.supervisor, path, listener, self.joints.services.clone());
    }

    fn start_ops(&mut self) {
        if let Some(address) = self.config.ops.listen {
            start_ops(&mut self.supervisor, address, &self.joints.board, &self.joints.reporter);
        }
    }

    fn start_listening(&mut self, listening: Listening) {
        let Listening::To(plan) = listening else { return };
        let Joints { board, reporter, alarms, clocks, .. } = &self.joints;
        board.note_listening(plan.as_ref().map(|plan| plan.confirmer));
        if let Some(plan) = plan {
            let alarms = self.config.alarm.on_keyphrase.then(|| alarms.clone());
            let loudness = &self.loudness;
            listening::start(&mut self.supervisor, plan, reporter, alarms, clocks.clock, loudness);
        }
    }

    fn start_watching(&mut self, plan: Option<activity::Plan>) {
        let Joints { activity, reporter, alarms, clocks, .. } = &self.joints;
        if let Some(plan) = plan {
            activity::start(&mut self.supervisor, plan, activity, reporter, alarms, *clocks);
        }
    }

    fn start_sensing(&mut self, plan: Option<sensing::Plan>) {
        let Joints { reporter, clocks, activity, alarms, .. } = &self.joints;
        if let Some(plan) = plan {
            let (loudness, activity) = (Arc::clone(&self.loudness), activity.clone());
            let supervisor = &mut self.supervisor;
            sensing::start(supervisor, plan, reporter, *clocks, loudness, activity, alarms);
        }
    }

    fn start_signal(&mut self) {
        let Joints { signal, reporter, clocks, .. } = &self.joints;
        let (settings, wanted) = (&self.config.signal, signal.subscribe());
        signalling::start(&mut self.supervisor, settings, wanted, reporter, clocks.clock);
    }

    fn start_buttons(&mut self) {
        let Joints { reporter, alarms, activity, clocks, .. } = &self.joints;
        let (buttons, clock) = (&self.config.buttons, clocks.clock);
        pressing::start(&mut self.supervisor, buttons, reporter, alarms, activity, clock);
    }
}
