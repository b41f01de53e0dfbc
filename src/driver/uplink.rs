//! Gives the uplink session a socket and a timer: one future, connection after connection.
//!
//! ```text
//!   connect ──▶ drive until it ends ──▶ wait (backoff) ──▶ connect …      until shutdown
//! ```
//! `uplink::Paths` says which URL comes next. While a session stands on a fallback, the first URL is
//! probed beside it; when the probe has its transport, the session leaves and moves over.
//!
//! # Invariants
//! - A publish is taken from the channel only when it can be sent soon: connected, a free slot,
//!   fewer than [`SEND_MARK`] bytes waiting to be written. The channel is small and its sender reserves
//!   first and chooses then, so the most urgent record is chosen late; the session puts it first.
//! - No side waits for the other: while the receiver of the notices is slow, bytes are still
//!   written and the keepalive kept; only reading stops once 256 of them wait.
//! - At most one attempt is under way, besides the probe while a session stands.
//! - A wait ends early when an alert wants to be sent: waits are for the fleet, an alert is not.
//! - A write that makes no progress for two keepalives ends the connection: a peer that stopped
//!   reading must not hold an alert for ever.
//!
//! Nothing is spawned and nothing is logged here; whoever takes the notices does both.

use std::future::{Future, pending};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until, timeout};

use super::host::read_secret;
use super::net::{self, BrokerUrl, ConnectError, Connected, Connector, FilesChange, Stream};
use crate::clock::{Clock, Rng};
use crate::uplink::{
    Backoff, CloseReason, Counters, Next, Notice, Outgoing, Paths, SEND_MARK, Session, Settings,
    SettingsError,
};

/// Reading stops while this many notices wait for their receiver.
const NOTICES_WAITING: usize = 256;
/// Reading stops while this many bytes wait to be written: answers to a peer that sends and does
/// not read would pile up without end.
const WRITE_MAX: usize = 4 * SEND_MARK;
/// While so many PUBACKs are to come, the processor is given away after each read. A broker or proxy on this machine, or whoever
/// else wants it, gets on, and the next read finds several of them: else broker and session wake each other for every single one
/// (ADR 0040).
const GIVES_WAY: usize = 32;
/// One read.
const READ_BYTES: usize = 16 * 1024;
/// How long the last bytes of an ended connection may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The longest password that MQTT can carry.
const PASSWORD_MAX: usize = u16::MAX as usize;

/// What the task is configured with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the broker is.
    pub url: BrokerUrl,
    /// Where to go when it stays away, in this order.
    pub fallbacks: Vec<BrokerUrl>,
    /// What besides the URL decides how to get there.
    pub transport: net::Settings,
    /// The file with the password, read again before each connection.
    pub password_file: Option<PathBuf>,
    /// Who we are and how we speak.
    pub session: Settings,
    /// How long to wait between attempts.
    pub backoff: Backoff,
    /// On a fallback: the shortest pause before the first URL is asked whether it is back.
    pub probe_pause: Duration,
    /// For each step of a transport: connection with name resolution, proxy, TLS, WebSocket.
    pub connect_timeout: Duration,
}

impl Config {
    /// Defaults: see [`Settings::new`] and [`Backoff::default`]; 10 s for a transport.
    pub fn new(url: BrokerUrl, session: Settings) -> Self {
        Self {
            url,
            fallbacks: Vec::new(),
            transport: net::Settings::default(),
            password_file: None,
            session,
            backoff: Backoff::default(),
            probe_pause: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// Reads all files that connections will need, so that a wrong one is found at the start.
    ///
    /// # Errors
    /// The first that cannot be used, with its key in `[uplink]`.
    pub fn check(&self) -> Result<(), net::SetupError> {
        let tls = [&self.url].into_iter().chain(&self.fallbacks).any(|url| url.scheme.is_tls());
        Connector::new(self.transport.clone(), self.connect_timeout).check(tls)
    }
}

/// The channels between the task and the rest of the process.
#[derive(Debug)]
pub struct Wires {
    /// Publishes to send; a few places. When its sender is gone, the session goes on without.
    pub outgoing: mpsc::Receiver<Outgoing>,
    /// What happened. When its receiver is gone, the task ends as on shutdown.
    pub notices: mpsc::Sender<Notice>,
    /// Deliveries of [`Notice::Received`] that are dealt with; bounded, a place for each is enough.
    pub settled: mpsc::Receiver<u64>,
    /// Totals, renewed whenever they change.
    pub counters: watch::Sender<Counters>,
    /// `true`: an alert wants to be sent, waits are short.
    pub urgent: watch::Receiver<bool>,
    /// `true`, or its sender gone: end in good order.
    pub shutdown: watch::Receiver<bool>,
}

/// Keeps an MQTT session with the broker for ever, and on shutdown ends it in good order, which
/// takes at most [`Settings::drain_timeout`] and a second.
///
/// Cancellation: dropping the future drops the connection as a cut would; the broker sends the will.
///
/// # Errors
/// Settings that MQTT cannot carry, before anything is connected. Everything later is a
/// [`Notice`] and another attempt.
pub async fn run(
    config: Config,
    wires: Wires,
    clock: Clock,
    rng: Rng,
) -> Result<Counters, SettingsError> {
    let mut task = Task::new(config, wires, clock, rng)?;
    while !task.shutting_down() {
        let ended = task.attempt().await;
        task.publish_counters();
        if task.session.finished() || task.shutting_down() {
            break;
        }
        let at_once = task.session.take_retry_at_once();
        let now = task.clock.now();
        let (why, next) = match ended {
            Ended::Left => continue,
            _ if at_once => continue,
            Ended::Failed(why) => (why, task.paths.failed(now)),
            Ended::Lost(why, lasted) => (why, task.paths.lost(now, lasted)),
        };
        if next != Next::Again {
            task.tell_path(&why).await;
        }
        if next != Next::OtherAtOnce {
            task.wait(why).await;
        }
    }
    let now = task.clock.now();
    task.session.close(now);
    task.last_notices().await;
    Ok(task.session.counters())
}

struct Task {
    config: Config,
    wires: Wires,
    clock: Clock,
    rng: Rng,
    session: Session,
    connector: Arc<Connector>,
    paths: Paths,
    /// What a probe has opened, for the next attempt.
    probed: Option<Connected>,
    /// Attempts in a row without a session.
    failures: u32,
    /// The password file cannot be read, which was told.
    password_missing: bool,
}

/// How an attempt ended.
enum Ended {
    /// Without a session; the story for people.
    Failed(String),
    /// With a session that stood so long.
    Lost(String, Duration),
    /// We moved to another path.
    Left,
}

type Probe = Pin<Box<dyn Future<Output = Result<Connected, ConnectError>> + Send>>;

impl Task {
    fn new(config: Config, wires: Wires, clock: Clock, rng: Rng) -> Result<Self, SettingsError> {
        let session = Session::new(config.session.clone())?;
        let connector = Arc::new(Connector::new(config.transport.clone(), config.connect_timeout));
        let paths = Paths::new(1 + config.fallbacks.len()).probing_after(config.probe_pause);
        Ok(Self {
            config,
            wires,
            clock,
            rng,
            session,
            connector,
            paths,
            probed: None,
            failures: 0,
            password_missing: false,
        })
    }

    /// Where the next attempt goes.
    fn url(&self) -> &BrokerUrl {
        match self.paths.current().checked_sub(1) {
            Some(fallback) => self.config.fallbacks.get(fallback).unwrap_or(&self.config.url),
            None => &self.config.url,
        }
    }

    fn shutting_down(&self) -> bool {
        *self.wires.shutdown.borrow()
            || self.wires.shutdown.has_changed().is_err()
            || self.wires.notices.is_closed()
    }

    /// One connection from beginning to end.
    async fn attempt(&mut self) -> Ended {
        let broker = format!("broker at {}", self.url().address());
        self.renew_password().await;
        let connected = match self.probed.take() {
            Some(probed) => Ok(probed),
            None => {
                let (connector, url) = (Arc::clone(&self.connector), self.url().clone());
                let connect = connector.connect(&url);
                match until_shutdown(&mut self.wires.shutdown, connect).await {
                    None => return Ended::Failed(broker),
                    Some(result) => result,
                }
            }
        };
        if let Some(change) = self.connector.take_files_change() {
            self.tell(match change {
                FilesChange::InForce => Notice::FilesInForce,
                FilesChange::Unusable(e) => Notice::FilesUnusable { problem: e.to_string() },
            })
            .await;
        }
        let Connected { stream, how } = match connected {
            Ok(connected) => connected,
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                return Ended::Failed(format!("{broker} {error}"));
            }
        };
        if !how.is_empty() {
            let how = format!("{} ({how})", self.url().address());
            self.tell(Notice::Reached { how }).await;
        }
        let connects = self.session.counters().connects;
        let (lasted, cause) = self.drive(stream).await;
        let story = format!("{broker}: {cause}");
        let stood = self.session.counters().connects > connects;
        if !stood {
            self.failures = self.failures.saturating_add(1);
            return Ended::Failed(story);
        }
        self.failures = 0;
        // Two devices with one client id would throw each other out for ever, and at full speed.
        if !matches!(self.session.last_close(), Some(CloseReason::TakenOver(_))) {
            self.config.backoff.session_lasted(lasted);
        }
        if self.probed.is_some() { Ended::Left } else { Ended::Lost(story, lasted) }
    }

    /// Reads the password again; one that cannot be read leaves the last one in force.
    async fn renew_password(&mut self) {
        let Some(file) = &self.config.password_file else { return };
        let read = read_secret(file).and_then(|password| match password.len() {
            0..=PASSWORD_MAX => Ok(password),
            long => {
                Err(format!("{} holds {long} bytes, MQTT takes {PASSWORD_MAX}", file.display()))
            }
        });
        match read {
            Ok(password) => {
                self.session.set_password(password);
                if std::mem::take(&mut self.password_missing) {
                    self.tell(Notice::FilesInForce).await;
                }
            }
            Err(error) if !std::mem::replace(&mut self.password_missing, true) => {
                let problem = format!("password_file: {error}");
                self.tell(Notice::FilesUnusable { problem }).await;
            }
            Err(_) => {}
        }
    }

    /// Moves bytes and publishes until the connection is over.
    async fn drive(&mut self, stream: Box<dyn Stream>) -> (Duration, String) {
        let began = self.clock.now();
        self.session.handle_connected(began);
        let (reader, writer) = tokio::io::split(stream);
        let mut link = Link {
            reader,
            writer,
            inbox: BytesMut::with_capacity(READ_BYTES),
            outbox: BytesMut::with_capacity(2 * SEND_MARK),
            unflushed: false,
            progress: began,
            stalled_after: 2 * self.config.session.keepalive,
            cause: None,
            stands: false,
            probe: None,
        };
        let connects = self.session.counters().connects;
        while link.cause.is_none() {
            let now = self.clock.now();
            self.transmit(&mut link, now);
            if self.session.ended() {
                // Whoever does not read our last words does not need them.
                let _ = timeout(LAST_WORDS, link.writer.write_all_buf(&mut link.outbox)).await;
                let _ = timeout(LAST_WORDS, link.writer.shutdown()).await;
                break;
            }
            self.step(&mut link).await;
            self.publish_counters();
            if !link.stands && self.session.counters().connects > connects {
                link.stands = true;
                self.paths.connected(self.clock.now(), &mut self.rng);
            }
        }
        let now = self.clock.now();
        let cause = link.cause.unwrap_or_default();
        self.session.handle_disconnected(now, &cause);
        let story = self.session.last_close().map_or(cause, ToString::to_string);
        (now.saturating_duration_since(began), story)
    }

    /// Asks the first path whether it is back.
    fn start_probe(&mut self, link: &mut Link, now: Instant) {
        if self.paths.probe_due(now) {
            let (connector, url) = (Arc::clone(&self.connector), self.config.url.clone());
            link.probe = Some(Box::pin(async move { connector.connect(&url).await }));
        }
    }

    /// The first path has answered the probe, or has not.
    async fn probe_ended(&mut self, probed: Result<Connected, ConnectError>) {
        let now = self.clock.now();
        let Ok(probed) = probed else { return self.paths.probe_failed(now, &mut self.rng) };
        self.probed = Some(probed);
        self.paths.probe_answered();
        let reason = format!("broker at {} answers again", self.config.url.address());
        self.tell_path(&reason).await;
        self.session.leave(self.clock.now());
    }

    fn transmit(&mut self, link: &mut Link, now: Instant) {
        let idle = link.outbox.is_empty();
        self.session.poll_transmit(now, &mut link.outbox);
        if idle {
            link.progress = now;
        }
    }

    /// Waits for the next thing to happen and does it.
    async fn step(&mut self, link: &mut Link) {
        self.start_probe(link, self.clock.now());
        let Self { wires, session, clock, paths, .. } = self;
        let stalled = link.progress + link.stalled_after;
        let writing = !link.outbox.is_empty() || link.unflushed;
        let waiting = session.waiting_notices();
        let reading =
            waiting < NOTICES_WAITING && link.outbox.len() < WRITE_MAX && session.wants_bytes();
        let taking = session.free_slots() > 0 && link.outbox.len() < SEND_MARK;
        let mut wake = session.poll_timeout().unwrap_or(stalled);
        if writing {
            wake = wake.min(stalled);
        }
        wake = paths.poll_probe().map_or(wake, |probe| wake.min(probe));
        let mut probed = None;
        tokio::select! {
            permit = wires.notices.reserve(), if waiting > 0 => match permit {
                Ok(permit) => {
                    if let Some(notice) = session.poll_notice() {
                        permit.send(notice);
                    }
                    while session.waiting_notices() > 0 && let Ok(permit) = wires.notices.try_reserve() {
                        if let Some(notice) = session.poll_notice() { permit.send(notice); }
                    }
                }
                Err(_) => {
                    while session.poll_notice().is_some() {}
                    session.close(clock.now());
                }
            },
            read = link.reader.read_buf(&mut link.inbox), if reading => match read {
                Ok(0) => link.cause = Some("broker closed the connection".into()),
                Ok(_) => {
                    session.handle_bytes(clock.now(), &link.inbox);
                    link.inbox.clear();
                    if session.owed() >= GIVES_WAY {
                        std::thread::yield_now();
                    }
                }
                Err(error) => link.failed(session, "read", &error),
            },
            written = write_on(&mut link.writer, &link.outbox), if writing => match written {
                Ok(bytes) => {
                    link.unflushed = !link.outbox.is_empty();
                    link.outbox.advance(bytes);
                    link.progress = clock.now();
                }
                Err(error) => link.failed(session, "write", &error),
            },
            ended = async { match &mut link.probe { Some(probe) => probe.await, None => pending().await } } => {
                link.probe = None;
                probed = Some(ended);
            },
            Some(outgoing) = wires.outgoing.recv(), if taking => {
                let taken = session.publish(outgoing);
                debug_assert!(taken.is_ok(), "asked only with a free slot");
                // Those that stand behind it go into the same write.
                while session.free_slots() > 0 && let Ok(next) = wires.outgoing.try_recv() {
                    let taken = session.publish(next);
                    debug_assert!(taken.is_ok(), "asked only with a free slot");
                }
            },
            Some(delivery) = wires.settled.recv() => session.acknowledge(clock.now(), delivery),
            _ = shutdown(&mut wires.shutdown), if !session.closing() => {
                session.close(clock.now());
            },
            () = sleep_until(wake.into()) => {
                let now = clock.now();
                if writing && now >= stalled {
                    link.cause = Some(format!("nothing could be written for {:?}", link.stalled_after));
                }
                session.handle_timeout(now);
            },
        }
        if let Some(probed) = probed {
            self.probe_ended(probed).await;
        }
    }

    /// Gives away the notices that are left, at the very end. What nobody takes in time is dropped
    /// with the session: a publish whose acknowledgement goes unheard is published again.
    async fn last_notices(&mut self) {
        let Self { wires: Wires { notices, .. }, session, .. } = self;
        let tell = async {
            while let Some(left) = session.poll_notice() {
                if notices.send(left).await.is_err() {
                    return;
                }
            }
        };
        timeout(LAST_WORDS, tell).await.ok();
    }

    /// Says something of our own, behind what the session has to say.
    async fn tell(&mut self, notice: Notice) {
        let Self { wires: Wires { shutdown, notices, .. }, session, .. } = self;
        let tell = async {
            while let Some(left) = session.poll_notice() {
                notices.send(left).await.ok();
            }
            notices.send(notice).await.ok();
        };
        until_shutdown(shutdown, tell).await;
    }

    async fn tell_path(&mut self, reason: &str) {
        let first = self.paths.on_first();
        let rank = if first { "the first path" } else { "fallback" };
        let message = format!("{reason}; {rank} {} is next", self.url());
        self.tell(Notice::PathChanged { first, message }).await;
    }

    /// Waits before the next attempt, and says so.
    async fn wait(&mut self, why: String) {
        let urgent = *self.wires.urgent.borrow();
        let Self { config: Config { backoff, .. }, rng, .. } = self;
        let delay = if urgent { backoff.quick_delay(rng) } else { backoff.next_delay(rng) };
        let attempt = self.failures;
        let retry = format!("trying again in {:.1} s", delay.as_secs_f64());
        let join = if why.ends_with('?') { " " } else { "; " };
        let message = match attempt {
            0 => format!("{why}{join}{retry}"),
            n => format!("{why}{join}{retry} (attempt {n})"),
        };
        let notice = Notice::Retrying { attempt, delay, message };
        let until = self.clock.now() + delay;
        self.tell(notice).await;
        self.pause(until, urgent).await;
    }

    /// Waits, and if an alert comes up meanwhile, not much longer.
    async fn pause(&mut self, until: Instant, urgent: bool) {
        let Self { config: Config { backoff, .. }, rng, wires, .. } = self;
        let Wires { urgent: alert, shutdown, .. } = wires;
        let alerted = async {
            if urgent || alert.wait_for(|urgent| *urgent).await.is_err() {
                pending::<()>().await;
            }
            sleep(backoff.quick_delay(rng)).await;
        };
        let pause = async {
            tokio::select! {
                () = sleep_until(until.into()) => {}
                () = alerted => {}
            }
        };
        until_shutdown(shutdown, pause).await;
    }

    fn publish_counters(&self) {
        let counters = self.session.counters();
        self.wires.counters.send_if_modified(|shown| {
            let changed = *shown != counters;
            *shown = counters;
            changed
        });
    }
}

struct Link {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    inbox: BytesMut,
    outbox: BytesMut,
    /// A layer below may hold back what was written.
    unflushed: bool,
    /// When a write last got on, or had nothing to write.
    progress: Instant,
    stalled_after: Duration,
    /// Why the transport is gone.
    cause: Option<String>,
    /// CONNACK has come.
    stands: bool,
    /// The first path, being asked whether it is back.
    probe: Option<Probe>,
}

impl Link {
    fn failed(&mut self, session: &mut Session, doing: &str, error: &std::io::Error) {
        self.cause = Some(match net::refusal(error) {
            Some(refusal) => {
                session.handle_refused(&refusal);
                refusal
            }
            None => format!("{doing}: {error}"),
        });
    }
}

/// Writes some of the bytes, or, where there are none, what a layer below still holds.
async fn write_on(writer: &mut WriteHalf<Box<dyn Stream>>, bytes: &[u8]) -> std::io::Result<usize> {
    if bytes.is_empty() {
        return writer.flush().await.map(|()| 0);
    }
    match writer.write(bytes).await? {
        0 => Err(std::io::Error::other("connection takes no more")),
        written => Ok(written),
    }
}

/// Ends when shutdown is asked for, or nobody is left to ask for it.
async fn shutdown(asked: &mut watch::Receiver<bool>) {
    asked.wait_for(|asked| *asked).await.ok();
}

/// The future's result, unless shutdown comes first.
async fn until_shutdown<T>(
    asked: &mut watch::Receiver<bool>,
    future: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        () = shutdown(asked) => None,
        result = future => Some(result),
    }
}
