//! The composition root: makes the parts, joins them, and ends them in order.
//!
//! ```text
//!  listening (thread) ─┐                                   ┌─ forwarding (task) ─ uplink ─ broker
//!  sensing (thread) ───┤
//!  ingest (task) ──────┼─▶ OutboxHandle ─▶ writer (thread) ┘
//!  reporter, alarms ───┘
//! ```
//!
//! Order of shutdown: the sources stop; what waits is sent while the broker answers, at most for
//! [`DRAIN`]; the uplink says that it goes offline; the outbox closes last. Whatever was not sent
//! is on the disk and is sent by the next run.
//!
mod activity;
mod alarming;
mod board;
mod commanding;
pub mod doctor;
mod forwarding;
mod happening;
mod helping;
mod listening;
mod pressing;
mod reloading;
mod reporter;
mod running;
mod sensing;
mod serving;
mod signalling;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};

use crate::alarm::Signal;
use crate::cli::{Failure, VERSION, exit};
use crate::clock::{Clock, Rng};
use crate::config::Config;
use crate::driver::outbox_admin::Admin;
use crate::driver::outbox_disk::OutboxDisk;
use crate::driver::{host, ingest, outbox_open, outbox_writer, sled_store::SledStore};
use crate::event::{Lane, catalogue::Maker, catalogue::Occurrence};
use crate::outbox::{Chronicle, Limits, Outbox};
use crate::sensor::button::Press;
use crate::supervisor::{Budget, Report, Stage, Supervisor};

pub use activity::{Activity, activity_file};
use board::Board;
pub use happening::Happening;
pub use listening::{Encore, Listener, ListenerFactory};
pub use reloading::Reload;
use reloading::reload_when_asked;
use reporter::Reporter;
use running::{Joints, Plans, Running};
use serving::{beat, source};

/// How long an orderly end waits for the broker to take what is stored.
pub const DRAIN: Duration = Duration::from_secs(5);
/// How long a stage may take to stop, longer than the uplink's farewell.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the agent looks after itself: answers systemd's watchdog, clears old faults.
const ROUND: Duration = Duration::from_secs(5);
/// How long the outbox may take to answer: salvage of a damaged store takes three seconds, a
/// sync of a worn card seldom more than one.
const HANG: Duration = Duration::from_secs(30);
/// A part that ran for so long after a restart counts as mended.
const MENDED: Duration = Duration::from_secs(30);

/// Services that may fail and be restarted: five times in ten minutes, then systemd's turn.
const BUDGET: Budget =
    Budget { restarts: 5, within: Duration::from_secs(600), pause: Duration::from_secs(1) };

/// What somebody does on the spot, where there is no real button: the simulator's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Presses a button.
    Press(Press),
    /// Calls a pending alarm off.
    Cancel,
}

/// What a run is made of besides its configuration; tests and the simulator bring their own.
#[derive(Debug)]
pub struct Parts {
    /// The clocks.
    pub clock: Clock,
    /// Chance: ids and backoff.
    pub rng: Rng,
    /// Makes the detector; called again after a failure.
    pub listener: ListenerFactory,
    /// Where [`Happening`]s go.
    pub happenings: broadcast::Sender<Happening>,
    /// Files to play after the one that `[audio] input` names.
    pub encore: Encore,
    /// The clock of what the sensors measure: the real one, but for a simulated day that goes faster.
    pub world: Clock,
    /// What somebody does on the spot; `None`: nobody is there.
    pub controls: Option<mpsc::Receiver<Control>>,
    /// True: the disk is taken for full.
    pub disk_full: Option<Arc<AtomicBool>>,
    /// How the configuration is read anew while the agent runs; `None`: it is not.
    pub reload: Option<Reload>,
}

impl Parts {
    /// The real ones.
    pub fn device() -> Self {
        let clock = Clock::new(host::clock_state);
        Self {
            clock,
            world: clock,
            rng: Rng::from_entropy(),
            listener: ListenerFactory::detector(),
            happenings: broadcast::Sender::new(256),
            encore: Encore::default(),
            controls: None,
            disk_full: None,
            reload: None,
        }
    }
}

/// SIGTERM, SIGINT and SIGHUP, none of which ends the process by itself from now on.
pub(crate) fn end_signals() -> Result<[tokio::signal::unix::Signal; 3], Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let install = |kind| {
        signal(kind).map_err(|e| Failure::new(exit::UNAVAILABLE, format!("handle signals: {e}")))
    };
    Ok([
        install(SignalKind::terminate())?,
        install(SignalKind::interrupt())?,
        install(SignalKind::hangup())?,
    ])
}

/// A future that ends with SIGTERM or SIGINT and says which, and the signal that asks for a reload: SIGHUP.
///
/// # Errors
/// The handlers cannot be installed.
///
/// # Panics
/// Outside a tokio runtime.
pub fn signals()
-> Result<(impl Future<Output = &'static str>, tokio::signal::unix::Signal), Failure> {
    let [mut terminate, mut interrupt, hangup] = end_signals()?;
    let end = async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    Ok((end, hangup))
}

/// Runs the agent until `stop` is ready, then drains.
///
/// # Errors
/// 78: a secret, a keyphrase or the weights are not usable. 74: the outbox cannot be opened, or
/// failed. 69: a part failed more often than its budget allows.
pub async fn run(
    config: Config,
    parts: Parts,
    stop: impl Future<Output = &'static str>,
) -> Result<(), Failure> {
    let Parts { clock, mut rng, listener, happenings, encore, world, .. } = parts;
    let Parts { controls, disk_full, reload, .. } = parts;
    let device = match &config.device.id {
        Some(id) => id.clone(),
        None => host::device_id().map_err(|e| Failure::new(exit::CONFIG, e))?,
    };
    // Everything that can be wrong with the installation is found before the first thread starts.
    let plans = Plans::new(&config, &device, encore, &listener, None)?;
    let maker = Maker::new(&device, &config.device.type_prefix);
    let outbox = outbox_open::open(&config.outbox.path, clock)
        .map_err(|e| Failure::new(exit::IO, e.to_string()))?;
    let alarming = alarming::plan(plans.rules.clone(), &outbox);
    let chronicle = Chronicle { maker: maker.clone(), rng: rng.fork() };

    let (mut supervisor, mut reports) = Supervisor::new();
    let waiting = outbox.levels();
    let disk = outbox_disk(&config, chronicle, clock).taken_for_full(disk_full);
    let outbox = start_outbox(&mut supervisor, outbox, disk, bounds(&config).settings, clock);
    let board = Board::new(&device, &outbox, clock);
    let (sent, told) = (happenings.clone(), board.clone());
    let reporter = Reporter::new(maker.clone(), clock, rng.fork(), outbox.clone(), sent, told);
    tracing::info!(device, outbox = %config.outbox.path.display(), waiting = waiting.total(), "hark {VERSION} starts");

    let (activity, signal) = (Activity::default(), watch::Sender::new(Signal::Off));
    let helping = helping::Parts {
        plan: alarming,
        signal: signal.clone(),
        reporter: reporter.clone(),
        maker,
        clock,
        rng: rng.fork(),
        controls,
        activity: activity.clone(),
    };
    let (alarms, alarms_wanted) = helping::start(&mut supervisor, &config, helping);
    let (links, ask) = forwarding::Links::new();
    let (files, max_size) = (config.outbox.path.clone(), config.outbox.max_size);
    let admin = Admin::new(outbox.clone(), files, max_size, Some(ask));
    let (routes, in_force) = watch::channel(helping::routes(&config));
    let targets =
        ingest::Targets { outbox: outbox.clone(), routes: in_force, alarms: alarms_wanted };
    let services = ingest::Services { targets, admin, status: source(&board) };
    let (heartbeat, interval) = watch::channel(config.ops.heartbeat_interval);
    let clocks = sensing::Clocks { clock, world };
    let joints = Joints {
        outbox: outbox.clone(),
        board: board.clone(),
        reporter: reporter.clone(),
        alarms,
        activity,
        links,
        signal,
        services,
        routes,
        heartbeat,
        clocks,
        rng,
    };
    let mut running = Running::start(supervisor, joints, config, plans).await?;
    // Last, since a status waits for company: nothing that matters more waits for it.
    reporter.report(&started()).await.map_err(|e| Failure::new(exit::IO, e))?;
    // Beside and not within: whoever watches over the parts waits for the outbox himself.
    let ended = tokio::select! {
        ended = watch_over(stop, &mut reports, &reporter, &outbox, clock) => ended,
        never = beat(interval, &board, &reporter) => match never {},
        never = reload_when_asked(reload, &mut running, &device, &listener) => match never {},
        () = hangs(&outbox) => Err(Failure::new(
            exit::IO,
            format!(
                "the outbox did not answer for {} s: the disk hangs; restart hark, or the device if that does not help",
                HANG.as_secs()
            ),
        )),
    };

    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    let Running { mut supervisor, joints, .. } = running;
    report_late(supervisor.stop(Stage::Source, PATIENCE).await);
    if let Ok(reason) = &ended {
        say_goodbye(reason, &reporter, &outbox, &mut joints.links.connected()).await;
    }
    report_late(supervisor.stop(Stage::Uplink, PATIENCE).await);
    let levels = outbox.levels();
    drop((reporter, outbox, joints));
    report_late(supervisor.stop(Stage::Outbox, PATIENCE).await);
    let left = *levels.borrow();
    let _ = happenings.send(Happening::Waiting(left.records));
    tracing::info!(waiting = left.total(), "hark stops");
    ended.map(|_| ())
}

fn started() -> Occurrence {
    Occurrence::SessionStarted { boot_id: host::boot_id(), version: VERSION.to_owned() }
}

fn report_late(services: Vec<&'static str>) {
    for service in services {
        tracing::warn!(service, "did not stop within {} s and is left behind", PATIENCE.as_secs());
    }
}

/// How the outbox is to be kept.
fn bounds(config: &Config) -> outbox_writer::Bounds {
    let mut settings = outbox_writer::Settings::default();
    settings.coalesce[Lane::Status.index()] = config.outbox.coalesce_status;
    settings.coalesce[Lane::Telemetry.index()] = config.outbox.coalesce_telemetry;
    let max_size = config.outbox.max_size;
    let bytes = outbox_open::payload_limit(max_size);
    let limits = Limits { bytes, expiry: config.outbox.expiry_telemetry };
    outbox_writer::Bounds { settings, limits, max_size }
}

fn outbox_disk(config: &Config, chronicle: Chronicle, clock: Clock) -> OutboxDisk {
    let outbox_writer::Bounds { limits, max_size, .. } = bounds(config);
    OutboxDisk::new(config.outbox.path.clone(), max_size, chronicle, limits, clock)
}

fn start_outbox(
    supervisor: &mut Supervisor,
    outbox: Outbox<SledStore>,
    disk: OutboxDisk,
    settings: outbox_writer::Settings,
    clock: Clock,
) -> outbox_writer::OutboxHandle {
    let (handle, requests) = outbox_writer::channel();
    let mut writer = Some((disk.equip(outbox), requests, disk));
    // Without a budget: the writer opens the outbox again by itself; where that does not help, a
    // new process might.
    supervisor.thread(Stage::Outbox, "outbox", Budget::NONE, move |stop| match writer.take() {
        Some((outbox, requests, disk)) => {
            let stop = stop.receiver();
            outbox_writer::run_on(outbox, requests, clock, settings, stop, disk)
                .map_err(|e| e.to_string())
        }
        None => Err("was started twice".to_owned()),
    });
    handle
}

/// Runs until there is a reason to end: `Ok` with it, or a part that was given up.
async fn watch_over(
    stop: impl Future<Output = &'static str>,
    reports: &mut mpsc::Receiver<Report>,
    reporter: &Reporter,
    outbox: &outbox_writer::OutboxHandle,
    clock: Clock,
) -> Result<&'static str, Failure> {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let watchdog = sd_notify::watchdog_enabled().is_some();
    let mut failed = std::collections::HashMap::new();
    let mut levels = outbox.levels();
    let mut short = false;
    let mut round = tokio::time::interval(ROUND);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            reason = &mut stop => return Ok(reason),
            report = reports.recv() => match report {
                Some(Report::Restarting { service, reason }) => {
                    failed.insert(service, clock.now());
                    reporter.raise(service, &format!("{reason}; it is started again")).await;
                }
                Some(Report::GivenUp { service, reason }) => {
                    let code = if service == "outbox" { exit::IO } else { exit::UNAVAILABLE };
                    return Err(Failure::new(code, format!("{service} failed for good: {reason}")));
                }
                None => return Err(Failure::new(exit::UNAVAILABLE, "the supervisor is gone")),
            },
            changed = levels.changed() => if changed.is_ok() {
                let now = *levels.borrow_and_update();
                reporter.happened(Happening::Waiting(now.records));
                if now.short != short {
                    short = now.short;
                    report_disk(short, reporter).await;
                }
            },
            _ = round.tick() => {
                let now = clock.now();
                let mended: Vec<_> = failed.extract_if(|_, at| now.duration_since(*at) >= MENDED).collect();
                for (service, _) in mended {
                    reporter.clear(service).await;
                }
                if watchdog && outbox_answers(outbox).await {
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
                }
            }
        }
    }
}

/// A disk without room for telemetry is a fault until there is room again.
async fn report_disk(short: bool, reporter: &Reporter) {
    if short {
        reporter.raise("disk", "the disk is full: telemetry is refused, alerts go on").await;
    } else {
        reporter.clear("disk").await;
    }
}

/// Ends when the outbox has not answered for [`HANG`]: a commit that never returns, since the
/// disk does not. The process then ends with 74 and leaves the writer's thread behind, and systemd starts
/// it again. A thread that hangs inside the kernel keeps even a dead process from going; then the
/// hardware watchdog, which nobody feeds any more, is what is left.
async fn hangs(outbox: &outbox_writer::OutboxHandle) {
    let limit = crate::outbox::PageLimit { records: 1, bytes: 1 };
    loop {
        let answer = outbox.page(Lane::Alert, None, limit);
        match tokio::time::timeout(HANG, answer).await {
            Ok(_) => tokio::time::sleep(ROUND).await,
            Err(_) => return,
        }
    }
}

/// A writer that hangs in a sync must not look alive to systemd.
async fn outbox_answers(outbox: &outbox_writer::OutboxHandle) -> bool {
    let limit = crate::outbox::PageLimit { records: 1, bytes: 1 };
    let answered = tokio::time::timeout(ROUND, outbox.page(Lane::Alert, None, limit)).await;
    matches!(answered, Ok(Ok(_)))
}

/// Stores the last event and gives the broker a moment to take all that waits.
async fn say_goodbye(
    reason: &str,
    reporter: &Reporter,
    outbox: &outbox_writer::OutboxHandle,
    connected: &mut watch::Receiver<bool>,
) {
    let stopped = Occurrence::SessionStopped { reason: reason.to_owned() };
    if let Err(error) = reporter.report(&stopped).await {
        tracing::warn!("the end of this session is not recorded: {error}");
    }
    let mut levels = outbox.levels();
    let drained = async {
        while *connected.borrow() && levels.borrow_and_update().total() > 0 {
            tokio::select! {
                changed = levels.changed() => if changed.is_err() { return },
                changed = connected.changed() => if changed.is_err() { return },
            }
        }
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("not everything was sent within {} s; the rest is kept", DRAIN.as_secs());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_outbox_that_does_not_answer_is_noticed_and_a_closed_one_is_not_taken_for_it() {
        let (hanging, _unserved) = outbox_writer::channel();
        tokio::time::timeout(HANG * 2, hangs(&hanging)).await.expect("noticed");
        let (closed, requests) = outbox_writer::channel();
        drop(requests);
        assert!(tokio::time::timeout(HANG * 3, hangs(&closed)).await.is_err());
    }
}
