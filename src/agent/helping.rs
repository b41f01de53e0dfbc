//! Starts everything that gets help: the alarms, the buttons, light and tone.

use tokio::sync::{mpsc, watch};

use super::alarming::{self, AlarmHandle, Plan, Wires};
use super::{Activity, Control, Reporter, pressing, signalling};
use crate::alarm::Signal;
use crate::clock::{Clock, Rng};
use crate::config::Config;
use crate::driver::{host, ingest};
use crate::event::catalogue::Maker;
use crate::supervisor::Supervisor;

/// What it is made of.
pub(super) struct Parts {
    pub(super) plan: Plan,
    pub(super) signal: watch::Sender<Signal>,
    pub(super) reporter: Reporter,
    pub(super) maker: Maker,
    pub(super) clock: Clock,
    pub(super) rng: Rng,
    pub(super) controls: Option<mpsc::Receiver<Control>>,
    pub(super) activity: Activity,
}

/// Starts it. The sender takes events of other programs that are to make an alarm.
pub(super) fn start(
    supervisor: &mut Supervisor,
    config: &Config,
    parts: Parts,
) -> (AlarmHandle, mpsc::Sender<ingest::Alarming>) {
    let Parts { plan, signal, reporter, maker, clock, rng, controls, activity } = parts;
    let (wanted, ingested) = mpsc::channel(ingest::MAX_REQUESTS);
    signalling::start(supervisor, &config.signal, signal.subscribe(), &reporter, clock);
    let boot = host::boot_id();
    let (reporting, away) = (reporter.clone(), activity.clone());
    let wires =
        Wires { reporter: reporting, maker, clock, rng, boot, ingested, signal, activity: away };
    let alarms = alarming::start(supervisor, plan, wires);
    pressing::start(supervisor, &config.buttons, &reporter, &alarms, &activity, clock);
    if let Some(controls) = controls {
        pressing::start_controls(supervisor, controls, &alarms);
    }
    (alarms, wanted)
}

/// The configuration's routes, as the socket takes them.
pub(super) fn routes(config: &Config) -> Vec<ingest::Route> {
    let routes = config.ingest.routes.iter();
    let route = |route: &crate::config::Route| ingest::Route {
        pattern: route.pattern.clone(),
        is_prefix: route.is_prefix,
        lane: route.lane.as_deref().and_then(|lane| lane.parse().ok()),
        alarm: route.alarm,
    };
    routes.map(route).collect()
}
