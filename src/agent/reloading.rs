//! SIGHUP: reads the configuration anew and puts it in force, or says what is wrong with it and goes on.
//!
//! systemd is told that a reload has begun and that it has ended (sd_notify(3)); what is wrong stands in the
//! log, in the unit's status text and in the fault `config`.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::signal::unix::Signal;

use super::listening::{Encore, ListenerFactory};
use super::running::{Exchanged, Plans, Running};
use crate::cli::Failure;
use crate::config::Config;
use crate::driver::host;
use crate::supervisor::aside;

/// The part that is at fault while a configuration that was asked for is not in force.
const CONFIG: &str = "config";
/// Problems that the fault names at most; the log has all.
const PROBLEMS: usize = 5;

/// Reads the configuration.
type Read = Arc<dyn Fn() -> Result<Config, Failure> + Send + Sync>;

/// How the agent is asked to read its configuration anew, and how it does.
pub struct Reload {
    asked: Signal,
    read: Read,
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reload")
    }
}

impl Reload {
    /// Asked for by a signal, SIGHUP. `read` may block.
    pub fn new(
        asked: Signal,
        read: impl Fn() -> Result<Config, Failure> + Send + Sync + 'static,
    ) -> Self {
        Self { asked, read: Arc::new(read) }
    }
}

/// Reloads whenever it is asked to, for ever.
pub(super) async fn reload_when_asked(
    reload: Option<Reload>,
    running: &mut Running,
    device: &str,
    listener: &ListenerFactory,
) -> Infallible {
    let Some(Reload { mut asked, read }) = reload else { return std::future::pending().await };
    let mut told = String::new();
    loop {
        if asked.recv().await.is_none() {
            return std::future::pending().await;
        }
        say(&[sd_notify::NotifyState::Reloading]);
        let problem = match again(&read, running, device, listener).await {
            Ok((exchanged, waits)) => {
                tracing::info!("{}", in_words(&exchanged));
                waits
            }
            Err(problems) => {
                for problem in &problems {
                    tracing::error!("the configuration is not taken over: {problem}");
                }
                let more = problems.len().saturating_sub(PROBLEMS);
                let more = (more > 0).then(|| format!("and {more} more"));
                let named: Vec<_> = problems.into_iter().take(PROBLEMS).chain(more).collect();
                Some(format!("the old configuration stays in force: {}", named.join("; ")))
            }
        };
        let problem = problem.unwrap_or_default();
        // Another problem is another fault.
        if std::mem::replace(&mut told, problem.clone()) != problem {
            running.joints.reporter.clear(CONFIG).await;
            if !problem.is_empty() {
                running.joints.reporter.raise(CONFIG, &problem).await;
            }
        }
        say(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(&problem)]);
    }
}

/// With the time, as `Type=notify-reload` asks for; that there is no systemd is no fault.
fn say(states: &[sd_notify::NotifyState<'_>]) {
    let now = sd_notify::NotifyState::monotonic_usec_now().into_iter();
    let _ = sd_notify::notify(&states.iter().cloned().chain(now).collect::<Vec<_>>());
}

/// What was exchanged, and what has to wait for a new start; or all that is wrong, a line each.
async fn again(
    read: &Read,
    running: &mut Running,
    device: &str,
    listener: &ListenerFactory,
) -> Result<(Exchanged, Option<String>), Vec<String>> {
    let lines = |failure: Failure| failure.message.lines().map(str::to_owned).collect::<Vec<_>>();
    let (read, before) = (Arc::clone(read), running.config.clone());
    let (name, listener) = (device.to_owned(), listener.clone());
    // Aside: files, weights and the network's names may take seconds, and an alarm waits for none of them.
    let check = move || {
        let mut config = read()?;
        let waiting = keep_identity(&mut config, &before, &name);
        Plans::new(&config, &name, Encore::default(), &listener, Some(&before))
            .map(|plans| (config, plans, waiting))
    };
    let checked = aside("reload", check).await.map_err(|e| vec![e])?;
    let (config, plans, waiting) = checked.map_err(lines)?;
    let exchanged = running.exchange(config, plans).await.map_err(lines)?;
    let waiting = (!waiting.is_empty()).then(|| {
        format!("{} changed, which takes effect when hark is restarted", waiting.join(", "))
    });
    if let Some(waiting) = &waiting {
        tracing::warn!("{waiting}");
    }
    Ok((exchanged, waiting))
}

/// Topics, sources and the queue itself belong to who the device is: that cannot change while events of the
/// old name are under way. Returns the keys that have changed.
fn keep_identity(config: &mut Config, before: &Config, device: &str) -> Vec<&'static str> {
    let mut waiting = Vec::new();
    let id = config.device.id.clone().or_else(|| host::device_id().ok());
    if id.as_deref() != Some(device) {
        waiting.push("device.id");
    }
    config.device.id.clone_from(&before.device.id);
    if config.device.type_prefix != before.device.type_prefix {
        config.device.type_prefix.clone_from(&before.device.type_prefix);
        waiting.push("device.type_prefix");
    }
    if config.outbox.path != before.outbox.path {
        config.outbox.path.clone_from(&before.outbox.path);
        waiting.push("outbox.path");
    }
    waiting
}

fn in_words(exchanged: &Exchanged) -> String {
    if exchanged.is_empty() {
        return "the configuration is in force; no part was stopped for it".to_owned();
    }
    let parts = exchanged.iter().map(|(part, gap)| format!("{part} ({} ms)", gap.as_millis()));
    let parts = parts.collect::<Vec<_>>().join(", ");
    format!("the configuration is in force; stopped and started for it: {parts}")
}
