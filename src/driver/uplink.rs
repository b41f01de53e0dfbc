//! Gives the uplink session a socket and a timer: one future, connection after connection.
//!
//! ```text
//!   connect ──▶ drive until it ends ──▶ wait (backoff) ──▶ connect …      until shutdown
//! ```
//!
//! # Invariants
//! - A publish is taken from the channel only when it can be sent soon: connected, a free slot,
//!   fewer than [`SEND_MARK`] bytes waiting to be written. With a channel of capacity 1 whose sender
//!   reserves first and chooses then, the most urgent record is chosen as late as can be.
//! - No side waits for the other: while the receiver of the notices is slow, bytes are still
//!   written and the keepalive kept; only reading stops once 256 of them wait.
//! - A write that makes no progress for two keepalives ends the connection: a peer that stopped
//!   reading must not hold an alert for ever.
//!
//! Nothing is spawned and nothing is logged here; whoever takes the notices does both.
//!
//! # Absent
//! Fallback URLs, TLS and WebSocket (they belong into `driver::net`).

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep_until, timeout};

use super::net::{self, BrokerUrl, Stream};
use crate::clock::{Clock, Rng};
use crate::uplink::{
    Backoff, CloseReason, Counters, Notice, Outgoing, SEND_MARK, Session, Settings, SettingsError,
};

/// Reading stops while this many notices wait for their receiver.
const NOTICES_WAITING: usize = 256;
/// Reading stops while this many bytes wait to be written: answers to a peer that sends and does
/// not read would pile up without end.
const WRITE_MAX: usize = 4 * SEND_MARK;
/// One read.
const READ_BYTES: usize = 16 * 1024;
/// How long the last bytes of an ended connection may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the task is configured with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the broker is.
    pub url: BrokerUrl,
    /// Who we are and how we speak.
    pub session: Settings,
    /// How long to wait between attempts.
    pub backoff: Backoff,
    /// For a transport, name resolution included.
    pub connect_timeout: Duration,
}

impl Config {
    /// Defaults: see [`Settings::new`] and [`Backoff::default`]; 10 s for a transport.
    pub fn new(url: BrokerUrl, session: Settings) -> Self {
        let connect_timeout = Duration::from_secs(10);
        Self { url, session, backoff: Backoff::default(), connect_timeout }
    }
}

/// The channels between the task and the rest of the process.
#[derive(Debug)]
pub struct Wires {
    /// Publishes to send; capacity 1. When its sender is gone, the session goes on without.
    pub outgoing: mpsc::Receiver<Outgoing>,
    /// What happened. When its receiver is gone, the task ends as on shutdown.
    pub notices: mpsc::Sender<Notice>,
    /// Deliveries of [`Notice::Received`] that are dealt with; bounded, a place for each is enough.
    pub settled: mpsc::Receiver<u64>,
    /// Totals, renewed whenever they change.
    pub counters: watch::Sender<Counters>,
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
    let session = Session::new(config.session.clone())?;
    let mut task = Task { config, wires, clock, rng, session, failures: 0 };
    while !task.shutting_down() {
        let why = task.attempt().await;
        task.publish_counters();
        if task.session.finished() || task.shutting_down() {
            break;
        }
        if task.session.take_retry_at_once() {
            continue;
        }
        task.wait(why).await;
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
    /// Attempts in a row without a session.
    failures: u32,
}

impl Task {
    fn shutting_down(&self) -> bool {
        *self.wires.shutdown.borrow()
            || self.wires.shutdown.has_changed().is_err()
            || self.wires.notices.is_closed()
    }

    /// One connection from beginning to end. Returns the story for people.
    async fn attempt(&mut self) -> String {
        let broker = format!("broker at {}", self.config.url.address());
        let connect = net::connect(&self.config.url, self.config.connect_timeout, &self.clock);
        let stream = match until_shutdown(&mut self.wires.shutdown, connect).await {
            None => return broker,
            Some(Err(error)) => {
                self.failures = self.failures.saturating_add(1);
                return format!("{broker} {error}");
            }
            Some(Ok(stream)) => stream,
        };
        let connects = self.session.counters().connects;
        let (lasted, cause) = self.drive(stream).await;
        if self.session.counters().connects > connects {
            self.failures = 0;
            // Two devices with one client id would throw each other out for ever, and at full speed.
            if !matches!(self.session.last_close(), Some(CloseReason::TakenOver(_))) {
                self.config.backoff.session_lasted(lasted);
            }
        } else {
            self.failures = self.failures.saturating_add(1);
        }
        format!("{broker}: {cause}")
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
            progress: began,
            stalled_after: 2 * self.config.session.keepalive,
            cause: None,
        };
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
        }
        let now = self.clock.now();
        let cause = link.cause.unwrap_or_default();
        self.session.handle_disconnected(now, &cause);
        let story = self.session.last_close().map_or(cause, ToString::to_string);
        (now.saturating_duration_since(began), story)
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
        let Self { wires, session, clock, .. } = self;
        let stalled = link.progress + link.stalled_after;
        let writing = !link.outbox.is_empty();
        let waiting = session.waiting_notices();
        let reading =
            waiting < NOTICES_WAITING && link.outbox.len() < WRITE_MAX && session.wants_bytes();
        let taking = session.free_slots() > 0 && link.outbox.len() < SEND_MARK;
        let mut wake = session.poll_timeout().unwrap_or(stalled);
        if writing {
            wake = wake.min(stalled);
        }
        tokio::select! {
            permit = wires.notices.reserve(), if waiting > 0 => match permit {
                Ok(permit) => {
                    if let Some(notice) = session.poll_notice() {
                        permit.send(notice);
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
                }
                Err(error) => link.cause = Some(format!("read: {error}")),
            },
            written = link.writer.write(&link.outbox), if writing => match written {
                Ok(0) => link.cause = Some("write: connection takes no more".into()),
                Ok(bytes) => {
                    link.outbox.advance(bytes);
                    link.progress = clock.now();
                }
                Err(error) => link.cause = Some(format!("write: {error}")),
            },
            Some(outgoing) = wires.outgoing.recv(), if taking => {
                let taken = session.publish(outgoing);
                debug_assert!(taken.is_ok(), "asked only with a free slot");
            },
            Some(delivery) = wires.settled.recv() => session.acknowledge(delivery),
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

    /// Waits before the next attempt, and says so.
    async fn wait(&mut self, why: String) {
        let delay = self.config.backoff.next_delay(&mut self.rng);
        let attempt = self.failures;
        let retry = format!("trying again in {:.1} s", delay.as_secs_f64());
        let join = if why.ends_with('?') { " " } else { "; " };
        let message = match attempt {
            0 => format!("{why}{join}{retry}"),
            n => format!("{why}{join}{retry} (attempt {n})"),
        };
        let notice = Notice::Retrying { attempt, delay, message };
        let Self { wires: Wires { shutdown, notices, .. }, session, .. } = self;
        let pause = tokio::time::sleep(delay);
        let tell = async {
            while let Some(left) = session.poll_notice() {
                notices.send(left).await.ok();
            }
            notices.send(notice).await.ok();
        };
        until_shutdown(shutdown, async { tokio::join!(pause, tell) }).await;
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
    /// When a write last got on, or had nothing to write.
    progress: Instant,
    stalled_after: Duration,
    /// Why the transport is gone.
    cause: Option<String>,
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
