//! The only place that spawns: named services, restart budgets, ordered shutdown.
//!
//! A *service* is a thread or a task that runs until it is told to stop. If it panics, returns an
//! error or ends before that, it has *failed*: the supervisor reports it and starts it again after
//! a pause, as often as its [`Budget`] allows. A service without a budget, or one that has used its
//! up, is *given up*: the agent then ends, and systemd starts the process anew, which is the
//! restart that also mends memory.
//!
//! Shutdown goes by [`Stage`], sources first: what feeds the outbox stops before what drains it,
//! and the outbox stops last. Each stage has a deadline; who misses it is named and left behind.
//!
//! While the rest goes on, single services can be stopped by their names and others be started in their
//! place: settings that have changed come into force so.
//!
//! Absent: restarting a group of services together after a failure, priorities.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The order in which services are stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// What makes events: detector, ingest.
    Source,
    /// What carries them away: the uplink.
    Uplink,
    /// What keeps them.
    Outbox,
}

/// How often a service may fail before it is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Restarts allowed within `within`; 0: the first failure is the last.
    pub restarts: usize,
    /// The sliding window in which they are counted.
    pub within: Duration,
    /// The pause before each restart.
    pub pause: Duration,
}

impl Budget {
    /// The first failure ends the agent.
    pub const NONE: Self =
        Self { restarts: 0, within: Duration::from_secs(1), pause: Duration::ZERO };
}

/// What the supervisor tells the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// It failed and will be started again.
    Restarting {
        /// The service.
        service: &'static str,
        /// Why it failed, in one line.
        reason: String,
    },
    /// It failed and its budget is used up.
    GivenUp {
        /// The service.
        service: &'static str,
        /// Why it failed last, in one line.
        reason: String,
    },
}

/// True once the service is to end. Cheap to clone; both for tasks and for threads.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Whether the service is to end.
    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the service is to end.
    pub async fn wait(&mut self) {
        // An error means that the supervisor is gone: then it is time to end as well.
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    /// Blocks a thread for `duration`, or until the service is to end, which it notices within
    /// 50 ms.
    pub fn sleep(&self, duration: Duration) {
        const STEP: Duration = Duration::from_millis(50);
        let mut left = duration;
        while !self.is_set() && !left.is_zero() {
            let step = left.min(STEP);
            std::thread::sleep(step);
            left -= step;
        }
    }

    /// The channel beneath, for drivers that know nothing of the supervisor.
    pub fn receiver(&self) -> watch::Receiver<bool> {
        self.0.clone()
    }
}

/// How a run of a service ended: `Err` is a failure.
pub type Outcome = Result<(), String>;
type RunOnce = Box<dyn FnMut(Stop) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send>;

/// Starts, watches and stops services. Must live inside a tokio runtime.
#[derive(Debug)]
pub struct Supervisor {
    services: Vec<Service>,
    reports: mpsc::Sender<Report>,
}

#[derive(Debug)]
struct Service {
    stage: Stage,
    name: &'static str,
    stop: watch::Sender<bool>,
    handle: JoinHandle<()>,
}

/// Reports that wait to be read at most; more than this many failures at once are one crash.
const REPORTS: usize = 64;

impl Supervisor {
    /// A supervisor and the channel of its reports.
    pub fn new() -> (Self, mpsc::Receiver<Report>) {
        let (reports, receiver) = mpsc::channel(REPORTS);
        (Self { services: Vec::new(), reports }, receiver)
    }

    /// Runs a future; `start` makes it anew for each run.
    pub fn task<F, R>(&mut self, stage: Stage, name: &'static str, budget: Budget, mut start: F)
    where
        F: FnMut(Stop) -> R + Send + 'static,
        R: Future<Output = Outcome> + Send + 'static,
    {
        self.supervise(stage, name, budget, Box::new(move |stop| Box::pin(run_task(start(stop)))));
    }

    /// Runs blocking code on a thread of its own; `body` is called anew for each run.
    pub fn thread<F>(&mut self, stage: Stage, name: &'static str, budget: Budget, body: F)
    where
        F: FnMut(Stop) -> Outcome + Send + 'static,
    {
        // Each run takes the body onto its thread and gives it back, so that the next can have it.
        let mut held = Some(body);
        let (give_back, mut given_back) = mpsc::channel(1);
        let run_once = move |stop: Stop| {
            let body = held.take().or_else(|| given_back.try_recv().ok());
            let give_back = give_back.clone();
            let run: Pin<Box<dyn Future<Output = Outcome> + Send>> =
                Box::pin(async move { run_thread(name, body, give_back, stop).await });
            run
        };
        self.supervise(stage, name, budget, Box::new(run_once));
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "this is the one place that spawns; tokio's clock is virtual in tests already"
    )]
    fn supervise(&mut self, stage: Stage, name: &'static str, budget: Budget, mut run: RunOnce) {
        let sender = watch::Sender::new(false);
        let stop = Stop(sender.subscribe());
        let reports = self.reports.clone();
        let watched = async move {
            let mut failures: VecDeque<Instant> = VecDeque::new();
            loop {
                let outcome = run(stop.clone()).await;
                if stop.is_set() {
                    if let Err(reason) = outcome {
                        tracing::warn!(service = name, "ended with an error on shutdown: {reason}");
                    }
                    return;
                }
                let reason = outcome.err().unwrap_or_else(|| "ended by itself".to_owned());
                let now = Instant::now();
                failures.push_back(now);
                while failures.front().is_some_and(|&at| now.duration_since(at) > budget.within) {
                    failures.pop_front();
                }
                if failures.len() > budget.restarts {
                    let _ = reports.send(Report::GivenUp { service: name, reason }).await;
                    return;
                }
                let _ = reports.send(Report::Restarting { service: name, reason }).await;
                let mut stopped = stop.clone();
                tokio::select! {
                    () = tokio::time::sleep(budget.pause) => {}
                    () = stopped.wait() => return,
                }
            }
        };
        let handle = tokio::spawn(watched);
        self.services.push(Service { stage, name, stop: sender, handle });
    }

    /// Stops one stage and waits for its services, at most until `patience` is over.
    /// Returns the names of those that did not end in time.
    pub async fn stop(&mut self, stage: Stage, patience: Duration) -> Vec<&'static str> {
        self.stop_those(|service| service.stage == stage, patience).await
    }

    /// The same for the services of one name; others go on, and new ones may take their place.
    pub async fn stop_service(&mut self, name: &str, patience: Duration) -> Vec<&'static str> {
        self.stop_those(|service| service.name == name, patience).await
    }

    async fn stop_those(
        &mut self,
        wanted: impl Fn(&Service) -> bool,
        patience: Duration,
    ) -> Vec<&'static str> {
        let stopping: Vec<_> = self.services.extract_if(.., |service| wanted(service)).collect();
        for service in &stopping {
            service.stop.send_replace(true);
        }
        let deadline = tokio::time::sleep(patience);
        tokio::pin!(deadline);
        let mut late = Vec::new();
        for mut service in stopping {
            let ended = tokio::select! {
                biased;
                _ = &mut service.handle => true,
                () = &mut deadline => false,
            };
            if !ended {
                service.handle.abort();
                late.push(service.name);
            }
        }
        late
    }
}

/// Runs blocking code once on a thread of its own, while the runtime goes on.
///
/// # Errors
/// One line: the thread could not be started, or panicked.
pub async fn aside<T: Send + 'static>(
    name: &'static str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (done, outcome) = oneshot::channel();
    let run = move || {
        let caught = std::panic::catch_unwind(AssertUnwindSafe(body));
        let _ = done.send(caught.map_err(|panic| panic_text(&*panic)));
    };
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    thread.map_err(|error| format!("start thread {name}: {error}"))?;
    outcome.await.unwrap_or_else(|_| Err("its thread vanished".to_owned()))
}

#[allow(clippy::disallowed_methods, reason = "this is the one place that spawns")]
async fn run_task(future: impl Future<Output = Outcome> + Send + 'static) -> Outcome {
    // On a task of its own, so that a panic arrives here as an error; ended with this one.
    let mut running = AbortOnDrop(tokio::spawn(future));
    match (&mut running.0).await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => Err(panic_text(&*panic)),
            Err(_) => Err("was aborted".to_owned()),
        },
    }
}

struct AbortOnDrop(JoinHandle<Outcome>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run_thread<F>(
    name: &'static str,
    body: Option<F>,
    give_back: mpsc::Sender<F>,
    stop: Stop,
) -> Outcome
where
    F: FnMut(Stop) -> Outcome + Send + 'static,
{
    let Some(mut body) = body else { return Err("lost its code in the last run".to_owned()) };
    let (ended, outcome) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let caught = std::panic::catch_unwind(AssertUnwindSafe(|| body(stop)));
        let _ = give_back.try_send(body);
        let _ = ended.send(caught.unwrap_or_else(|panic| Err(panic_text(&*panic))));
    });
    match thread {
        Err(error) => Err(format!("start thread {name}: {error}")),
        Ok(_) => outcome.await.unwrap_or_else(|_| Err("its thread vanished".to_owned())),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned());
    format!("panicked: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    const BUDGET: Budget =
        Budget { restarts: 2, within: Duration::from_secs(60), pause: Duration::from_secs(1) };

    fn restarting(report: Option<Report>) -> bool {
        matches!(report, Some(Report::Restarting { .. }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_panicking_thread_is_restarted_until_its_budget_is_used_up() {
        let (mut supervisor, mut reports) = Supervisor::new();
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        supervisor.thread(Stage::Source, "detector", BUDGET, move |_| {
            panic!("run {}", counted.fetch_add(1, Ordering::SeqCst));
        });
        assert!(restarting(reports.recv().await));
        assert!(restarting(reports.recv().await));
        let last = Report::GivenUp { service: "detector", reason: "panicked: run 2".into() };
        assert_eq!(reports.recv().await, Some(last));
        assert_eq!(runs.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_that_lie_far_apart_do_not_use_up_the_budget() {
        let (mut supervisor, mut reports) = Supervisor::new();
        supervisor.task(Stage::Source, "slow", BUDGET, |_| async {
            tokio::time::sleep(Duration::from_secs(59)).await;
            Err("again".to_owned())
        });
        for _ in 0..20 {
            assert!(restarting(reports.recv().await));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_panicking_task_is_reported_and_one_without_budget_given_up() {
        let (mut supervisor, mut reports) = Supervisor::new();
        supervisor.task(Stage::Outbox, "writer", Budget::NONE, |_| async { panic!("disk") });
        let given_up = Report::GivenUp { service: "writer", reason: "panicked: disk".into() };
        assert_eq!(reports.recv().await, Some(given_up));
    }

    #[tokio::test(start_paused = true)]
    async fn stages_stop_in_order_and_the_late_are_named() {
        let (mut supervisor, _reports) = Supervisor::new();
        let order = Arc::new(Mutex::new(Vec::new()));
        for (stage, name) in [(Stage::Outbox, "outbox"), (Stage::Source, "source")] {
            let order = Arc::clone(&order);
            supervisor.task(stage, name, BUDGET, move |mut stop| {
                let order = Arc::clone(&order);
                async move {
                    stop.wait().await;
                    order.lock().unwrap().push(name);
                    Ok(())
                }
            });
        }
        supervisor.task(Stage::Uplink, "deaf", BUDGET, |_| std::future::pending());
        let patience = Duration::from_secs(5);
        assert!(supervisor.stop(Stage::Source, patience).await.is_empty());
        assert_eq!(supervisor.stop(Stage::Uplink, patience).await, ["deaf"]);
        assert!(supervisor.stop(Stage::Outbox, patience).await.is_empty());
        assert_eq!(*order.lock().unwrap(), ["source", "outbox"]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_service_is_stopped_and_started_anew_while_the_others_go_on() {
        let (mut supervisor, mut reports) = Supervisor::new();
        let running = Arc::new(Mutex::new(Vec::new()));
        let mut start = |name, version: &'static str| {
            let running = Arc::clone(&running);
            supervisor.task(Stage::Source, name, BUDGET, move |mut stop| {
                let running = Arc::clone(&running);
                async move {
                    running.lock().unwrap().push(version);
                    stop.wait().await;
                    running.lock().unwrap().retain(|other| *other != version);
                    Ok(())
                }
            });
        };
        start("button", "old");
        start("sensor", "stays");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(supervisor.stop_service("button", Duration::from_secs(5)).await.is_empty());
        assert_eq!(*running.lock().unwrap(), ["stays"]);
        let again = Arc::clone(&running);
        supervisor.task(Stage::Source, "button", BUDGET, move |_| {
            again.lock().unwrap().push("new");
            std::future::pending()
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(*running.lock().unwrap(), ["stays", "new"]);
        assert!(reports.try_recv().is_err(), "none of that is a failure");
        assert_eq!(supervisor.stop(Stage::Source, Duration::from_secs(5)).await, ["button"]);
        assert!(running.lock().unwrap().iter().all(|version| *version == "new"));
    }

    #[tokio::test]
    async fn what_runs_aside_gives_its_result_and_a_panic_is_an_error() {
        assert_eq!(aside("sum", || 1 + 1).await, Ok(2));
        assert_eq!(aside("bad", || panic!("no")).await, Err::<(), _>("panicked: no".to_owned()));
    }
}
