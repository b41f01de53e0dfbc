//! Joins forwarder, outbox and uplink session: one task, started anew as a whole if it fails.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::{BUDGET, Happening, Reporter};
use crate::cli::{Failure, exit};
use crate::clock::{Clock, Rng};
use crate::config;
use crate::driver::outbox_writer::OutboxHandle;
use crate::driver::{host, net, uplink as driver};
use crate::event::Lane;
use crate::forwarder::{Fate, Forwarder};
use crate::supervisor::{Outcome, Stage, Stop, Supervisor};
use crate::uplink::{Counters, Credentials, Notice, Outgoing, Presence, Protocol, Settings};

/// Notices of the session that wait for the forwarder at most.
const NOTICES: usize = 256;
/// Failed attempts to connect after which the path counts as a fault.
const ATTEMPTS_BEFORE_FAULT: u32 = 3;

/// What the uplink needs, checked.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    device: String,
    driver: driver::Config,
}

/// Checks the settings and reads the password.
///
/// # Errors
/// 78, naming the key.
pub(super) fn plan(config: &config::Uplink, device: &str) -> Result<Plan, Failure> {
    let wrong = |key: &str, e: &dyn std::fmt::Display| {
        Failure::new(exit::CONFIG, format!("uplink.{key}: {e}"))
    };
    let url = config.url.parse().map_err(|e: net::UrlError| wrong("url", &e))?;
    let fallbacks = config.fallback_urls.iter().map(|url| url.parse());
    let fallbacks =
        fallbacks.collect::<Result<_, net::UrlError>>().map_err(|e| wrong("fallback_urls", &e))?;
    let proxy = config.proxy.as_deref().map(str::parse).transpose();
    let transport = net::Settings {
        tls: net::TlsFiles {
            ca_file: config.ca_file.clone(),
            cert_file: config.cert_file.clone(),
            key_file: config.key_file.clone(),
            crl_file: config.crl_file.clone(),
            alpn: config.alpn.clone(),
        },
        proxy: proxy.map_err(|e: net::ProxyUrlError| wrong("proxy", &e))?,
        proxy_password_file: config.proxy_password_file.clone(),
    };
    let password = match &config.password_file {
        None => Vec::new(),
        Some(file) => host::read_secret(file).map_err(|e| wrong("password_file", &e))?,
    };
    let said_by_us = |state: &str| {
        serde_json::json!({
            "state": state,
            "version": env!("CARGO_PKG_VERSION"),
            "boot_id": host::boot_id(),
        })
        .to_string()
        .into()
    };
    let presence = Presence {
        topic: format!("hark/{device}/presence").into(),
        birth: said_by_us("online"),
        will: said_by_us("offline"),
    };
    let mut settings = Settings::new(device, presence);
    settings.protocol = match config.protocol {
        config::Protocol::Auto => Protocol::Auto,
        config::Protocol::V5 => Protocol::V5,
        config::Protocol::V311 => Protocol::V311,
    };
    settings.keepalive = config.keepalive;
    settings.window = config.window;
    settings.credentials = (!config.username.is_empty())
        .then(|| Credentials { username: config.username.clone(), password });
    settings.validate().map_err(|e| wrong("", &e))?;
    let mut driver = driver::Config::new(url, settings);
    driver.fallbacks = fallbacks;
    driver.transport = transport;
    driver.password_file.clone_from(&config.password_file);
    driver.check().map_err(|e| wrong(e.key, &e.problem))?;
    Ok(Plan { device: device.to_owned(), driver })
}

/// Starts the task. The receiver says whether there is a session with the broker.
pub(super) fn start(
    supervisor: &mut Supervisor,
    plan: Plan,
    outbox: &OutboxHandle,
    reporter: &Reporter,
    clock: Clock,
    mut rng: Rng,
) -> watch::Receiver<bool> {
    let connected = watch::Sender::new(false);
    let receiver = connected.subscribe();
    let (outbox, reporter) = (outbox.clone(), reporter.clone());
    supervisor.task(Stage::Uplink, "uplink", BUDGET, move |stop| {
        let pump = Pump {
            forwarder: Forwarder::new(&plan.device),
            outbox: outbox.clone(),
            reporter: reporter.clone(),
            clock,
            connected: connected.clone(),
            urgent: watch::Sender::new(false),
            on_first_path: true,
        };
        forward(plan.clone(), pump, rng.fork(), stop)
    });
    receiver
}

async fn forward(plan: Plan, pump: Pump, rng: Rng, stop: Stop) -> Outcome {
    // One place: the forwarder chooses the record at the moment in which the session has room.
    let (outgoing, taken) = mpsc::channel(1);
    let (noticed, notices) = mpsc::channel(NOTICES);
    let clock = pump.clock;
    let (counters, _) = watch::channel(Counters::default());
    let shutdown = stop.receiver();
    let urgent = pump.urgent.subscribe();
    let wires = driver::Wires { outgoing: taken, notices: noticed, counters, urgent, shutdown };
    let session = driver::run(plan.driver, wires, clock, rng);
    let (session, pump) = tokio::join!(session, pump.run(outgoing, notices));
    session.map_err(|e| e.to_string())?;
    pump
}

struct Pump {
    forwarder: Forwarder,
    outbox: OutboxHandle,
    reporter: Reporter,
    clock: Clock,
    connected: watch::Sender<bool>,
    /// An alert waits in the outbox.
    urgent: watch::Sender<bool>,
    /// The session stands, or is being tried, on the first URL.
    on_first_path: bool,
}

impl Pump {
    /// Runs until the session has ended and its last notice is read.
    async fn run(
        mut self,
        outgoing: mpsc::Sender<Outgoing>,
        mut notices: mpsc::Receiver<Notice>,
    ) -> Outcome {
        let mut levels = self.outbox.levels();
        levels.mark_changed();
        loop {
            while let Some(wanted) = self.forwarder.wanted() {
                let page = self.outbox.page(wanted.lane, wanted.after, wanted.limit).await;
                self.forwarder.loaded(wanted, page.map_err(|e| e.to_string())?);
            }
            let now = self.clock.now();
            let due = self.forwarder.next_deferred().map_or(Duration::MAX, |at| at - now);
            tokio::select! {
                notice = notices.recv() => match notice {
                    Some(notice) => self.noticed(&notice).await?,
                    None => break,
                },
                permit = outgoing.reserve(), if self.forwarder.has_next(now) => match permit {
                    Ok(permit) => if let Some(next) = self.forwarder.next(now) {
                        permit.send(next);
                    },
                    // The session takes nothing more; its last notices are still to come.
                    Err(_) => while let Some(notice) = notices.recv().await {
                        self.noticed(&notice).await?;
                    },
                },
                changed = levels.changed() => match changed {
                    Ok(()) => {
                        let (tails, records) = {
                            let levels = levels.borrow_and_update();
                            (levels.tails, levels.records)
                        };
                        self.forwarder.reach(tails);
                        let urgent = records[Lane::Alert.index()] > 0;
                        self.urgent.send_if_modified(|was| std::mem::replace(was, urgent) != urgent);
                    }
                    Err(_) => return Err("the outbox is closed".to_owned()),
                },
                () = tokio::time::sleep(due), if due != Duration::MAX => {}
            }
        }
        self.connected.send_replace(false);
        Ok(())
    }

    async fn noticed(&mut self, notice: &Notice) -> Outcome {
        self.show(notice).await;
        match self.forwarder.handle(notice, self.clock.now()) {
            None => {}
            Some(Fate::Published { id, lane, again }) => {
                tracing::debug!(id, %lane, again, "published");
                self.reporter.happened(Happening::Published { id, lane, again });
            }
            Some(Fate::Delivered(flight)) => {
                tracing::debug!(id = flight.id, lane = %flight.lane, "acknowledged");
                let remove = vec![(flight.lane, flight.position)];
                self.outbox.remove(remove).await.map_err(|e| e.to_string())?;
                let (id, lane) = (flight.id, flight.lane);
                self.reporter.happened(Happening::Acknowledged { id, lane });
            }
            Some(Fate::Deferred { id, lane, reason, pause }) => {
                tracing::warn!(id, %lane, "{reason}; offered again in {} s", pause.as_secs());
                self.reporter.happened(Happening::Deferred { id, reason });
            }
        }
        Ok(())
    }

    /// News of the connection: for the log, for whoever watches, and as a fault where it lasts.
    async fn show(&mut self, notice: &Notice) {
        let line = match notice {
            Notice::Connected { protocol, session_present } => {
                self.connected.send_replace(true);
                self.reporter.clear("uplink").await;
                if self.on_first_path {
                    self.reporter.clear("path").await;
                }
                let kept = if *session_present { ", session resumed" } else { "" };
                format!("connected over {protocol}{kept}")
            }
            Notice::Closed { reason } => {
                self.connected.send_replace(false);
                reason.to_string()
            }
            Notice::ProtocolChanged { to, reason } => format!("trying {to}: {reason}"),
            Notice::PresenceRefused { reason } => format!("presence: {reason}"),
            Notice::ConnectionRefused { reason } => {
                self.reporter.raise("uplink", reason).await;
                reason.clone()
            }
            Notice::Reached { how } => format!("reached {how}"),
            Notice::PathChanged { first, message } => {
                self.on_first_path = *first;
                if !first {
                    self.reporter.raise("path", message).await;
                }
                message.clone()
            }
            Notice::FilesInForce => {
                self.reporter.clear("certificates").await;
                "changed files are in force".to_owned()
            }
            Notice::FilesUnusable { problem } => {
                let problem = format!("uplink.{problem}; what was in force before stays");
                self.reporter.raise("certificates", &problem).await;
                problem
            }
            Notice::Retrying { attempt, message, .. } => {
                if *attempt == ATTEMPTS_BEFORE_FAULT {
                    self.reporter.raise("uplink", message).await;
                }
                message.clone()
            }
            Notice::Published { .. } | Notice::Acknowledged { .. } | Notice::Refused { .. } => {
                return;
            }
        };
        tracing::info!("uplink: {line}");
        self.reporter.happened(Happening::Uplink(line));
    }
}
