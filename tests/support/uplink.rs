//! The uplink task as the agent would run it, with its channels in the test's hands.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hark::clock::{Clock, ClockState, Rng};
use hark::driver::uplink::{Config, Wires, run};
use hark::uplink::{
    Backoff, CloseReason, Counters, Notice, Outgoing, Presence, Protocol, Settings, SettingsError,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::PATIENCE;

/// A running uplink. Dropping it is a cut: no goodbye.
pub struct Device {
    pub outgoing: mpsc::Sender<Outgoing>,
    pub settled: mpsc::Sender<u64>,
    notices: mpsc::Receiver<Notice>,
    pub counters: watch::Receiver<Counters>,
    /// An alert wants to be sent.
    pub urgent: watch::Sender<bool>,
    shutdown: watch::Sender<bool>,
    task: JoinHandle<Result<Counters, SettingsError>>,
    /// Every notice taken so far.
    pub seen: Vec<Notice>,
    /// Tokens handed in by [`Device::publish`] and not yet acknowledged.
    pub open: BTreeSet<u64>,
    /// Tokens acknowledged.
    pub acknowledged: BTreeSet<u64>,
}

/// A device `flat-12` that talks to this broker and tries again quickly.
pub fn config(url: &str, protocol: Protocol) -> Config {
    let presence = Presence {
        topic: "hark/flat-12/presence".into(),
        birth: Bytes::from_static(b"online"),
        will: Bytes::from_static(b"offline"),
    };
    let mut settings = Settings::new("flat-12", presence);
    settings.protocol = protocol;
    let mut config = Config::new(url.parse().expect("broker URL"), settings);
    let ms = Duration::from_millis;
    config.backoff = Backoff::new(ms(10), ms(100), ms(500)).expect("valid backoff");
    config
}

/// The publish that stands for `token`: its payload tells it, and every byte value occurs.
pub fn outgoing(token: u64) -> Outgoing {
    let mut payload = token.to_be_bytes().to_vec();
    let length = token as usize * 37 % 700;
    payload.extend((0..length).map(|at| (at as u64 ^ token) as u8));
    let mut outgoing = Outgoing::new(token, "hark/flat-12/events/alert".into(), payload.into());
    outgoing.content_type = Some("application/cloudevents+json".into());
    outgoing
}

impl Device {
    pub fn start(config: Config) -> Self {
        let (outgoing, outgoing_rx) = mpsc::channel(1);
        let (notices_tx, notices) = mpsc::channel(64);
        let (settled, settled_rx) = mpsc::channel(16);
        let (counters_tx, counters) = watch::channel(Counters::default());
        let (shutdown, shutdown_rx) = watch::channel(false);
        let (urgent, urgent_rx) = watch::channel(false);
        let wires = Wires {
            outgoing: outgoing_rx,
            notices: notices_tx,
            settled: settled_rx,
            counters: counters_tx,
            urgent: urgent_rx,
            shutdown: shutdown_rx,
        };
        let clock = Clock::new(|| ClockState::Synced);
        let task = tokio::spawn(run(config, wires, clock, Rng::from_seed(1)));
        Self {
            outgoing,
            settled,
            notices,
            counters,
            urgent,
            shutdown,
            task,
            seen: Vec::new(),
            open: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
        }
    }

    /// The next notice; it is also put into `seen`.
    pub async fn notice(&mut self) -> Notice {
        let notice = timeout(PATIENCE, self.notices.recv()).await.expect("a notice in time");
        let notice = notice.expect("the uplink runs");
        if let Notice::Acknowledged { token, .. } = notice {
            self.open.remove(&token);
            assert!(self.acknowledged.insert(token), "{token} acknowledged twice");
        }
        self.seen.push(notice.clone());
        notice
    }

    /// Takes notices until one is as wanted, and returns it.
    pub async fn wait_for(&mut self, wanted: impl Fn(&Notice) -> bool) -> Notice {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let notice = self.notice().await;
            if wanted(&notice) {
                return notice;
            }
        }
        panic!(
            "gave up waiting; seen last: {:?}",
            self.seen.iter().rev().take(5).collect::<Vec<_>>()
        );
    }

    pub async fn connected(&mut self) -> Notice {
        self.wait_for(|n| matches!(n, Notice::Connected { .. })).await
    }

    /// Hands in up to two more while a frozen broker acknowledges nothing; returns those that found
    /// no room. Either way something is in flight then: the second finds room only once the session
    /// has taken the first, and none is found only where the window is full.
    pub async fn put_in_flight(&mut self, tokens: [u64; 2]) -> Vec<u64> {
        let mut left = Vec::new();
        for token in tokens {
            let room = timeout(Duration::from_secs(1), self.outgoing.reserve()).await;
            match room {
                Ok(permit) if left.is_empty() => {
                    permit.expect("the uplink runs").send(outgoing(token));
                    self.open.insert(token);
                }
                _ => left.push(token),
            }
        }
        left
    }

    /// Hands in `tokens` as fast as they are taken, until everything handed in so far is acknowledged
    /// or `enough` says so of those acknowledged. Returns the tokens that were not handed in.
    pub async fn publish(
        &mut self,
        tokens: impl IntoIterator<Item = u64>,
        enough: impl Fn(&BTreeSet<u64>) -> bool,
    ) -> Vec<u64> {
        let mut tokens = tokens.into_iter().peekable();
        let sender = self.outgoing.clone();
        while !enough(&self.acknowledged) {
            let next = tokens.peek().copied();
            if next.is_none() && self.open.is_empty() {
                break;
            }
            tokio::select! {
                permit = sender.reserve(), if next.is_some() => {
                    if let Some(token) = tokens.next() {
                        self.open.insert(token);
                        permit.expect("the uplink runs").send(outgoing(token));
                    }
                }
                _ = self.notice() => {}
            }
        }
        tokens.collect()
    }

    /// Hands in `tokens` and waits until everything is acknowledged.
    pub async fn publish_all(&mut self, tokens: impl IntoIterator<Item = u64>) {
        let left = self.publish(tokens, |_| false).await;
        assert!(left.is_empty());
    }

    /// Asks for an orderly end and waits for it.
    pub async fn shut_down(mut self) -> (Counters, Vec<Notice>) {
        self.shutdown.send(true).expect("the uplink runs");
        let mut notices = std::mem::take(&mut self.seen);
        let rest = async {
            while let Some(notice) = self.notices.recv().await {
                notices.push(notice);
            }
        };
        timeout(PATIENCE, rest).await.expect("the uplink ends in time");
        let ended = (&mut self.task).await.expect("no panic").expect("valid settings");
        (ended, notices)
    }

    /// Ends it without a goodbye, as a power cut does.
    pub async fn cut(mut self) {
        self.task.abort();
        (&mut self.task).await.ok();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether the last connection ended in good order.
pub fn ended_orderly(notices: &[Notice]) -> bool {
    matches!(notices.last(), Some(Notice::Closed { reason: CloseReason::Orderly }))
}
