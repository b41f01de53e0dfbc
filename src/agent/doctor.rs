//! Checks everything that an installation can fail at, and says how to mend each.
//!
//! It may run beside the agent: it takes nothing from it, and speaks to the broker under a client id of
//! its own, so that it does not throw the device's session out.
//!
//! Absent: anything that changes the device. What it creates to see whether it may, it removes.

mod help;

use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};

use super::forwarding;
use super::listening::{self, ListenerFactory};
use super::sensing;
use crate::audio::{Health, SAMPLE_RATE_HZ, SILENCE_DBFS, rms_dbfs};
use crate::cli::exit;
use crate::clock::{Clock, ClockState};
use crate::config::{AudioInput, Config};
use crate::driver::net::{BrokerUrl, Connector};
use crate::driver::{host, microphone, sys};
use crate::uplink::{Notice, Session, Settings};

/// How long the microphone is listened to.
const LISTEN: Duration = Duration::from_secs(2);
/// How long a broker may take to answer, from the transport on.
const ANSWER: Duration = Duration::from_secs(10);
/// Room below which the outbox gives way early.
const LITTLE_ROOM: u64 = 32 << 20;

/// What was found out about one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The thing.
    pub what: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen; where it is not well, what to do.
    pub detail: String,
}

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Well,
    /// The device works, not as well as it could.
    Poor,
    /// The device does not do its work; the exit code says of what kind.
    Wrong(u8),
}

/// Findings in the order in which they were made.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, what: &str, verdict: Verdict, detail: impl Into<String>) {
        self.0.push(Finding { what: what.to_owned(), verdict, detail: detail.into() });
    }

    fn result(&mut self, what: &str, code: u8, result: Result<String, String>) {
        match result {
            Ok(detail) => self.add(what, Verdict::Well, detail),
            Err(detail) => self.add(what, Verdict::Wrong(code), detail),
        }
    }
}

/// Looks at everything; takes some ten seconds at most for each broker.
pub async fn examine(config: &Config, clock: Clock) -> Vec<Finding> {
    let mut findings = Findings::default();
    let device = match &config.device.id {
        Some(id) => Ok(id.clone()),
        None => host::device_id(),
    };
    findings.result("device", exit::CONFIG, device.clone());
    match host::clock_state() {
        ClockState::Unsynced => findings.add(
            "clock",
            Verdict::Poor,
            "not synchronised: events say so, and telemetry does not expire; switch on time \
             synchronisation: timedatectl set-ntp true",
        ),
        _ => findings.add("clock", Verdict::Well, "synchronised"),
    }
    outbox(config, &mut findings);
    ear(config, clock, &mut findings);
    help::examine(config, &mut findings);
    sensors(config, clock, &mut findings);
    uplink(config, &device.unwrap_or_else(|_| "unknown".to_owned()), clock, &mut findings).await;
    ingest(config, &mut findings).await;
    ops(config, &mut findings).await;
    findings.0
}

fn outbox(config: &Config, findings: &mut Findings) {
    let path = &config.outbox.path;
    // It is made at the first start, if the directory above is there.
    let place =
        if path.exists() { path.as_path() } else { path.parent().unwrap_or(Path::new("/")) };
    if let Err(error) = may_write(place) {
        let detail = format!(
            "{error}; mount its disk, make the directory, or let hark's user write there ({})",
            path.display()
        );
        return findings.add("outbox", Verdict::Wrong(exit::IO), detail);
    }
    match sys::free_bytes(place) {
        Ok(free) if free < LITTLE_ROOM => findings.add(
            "outbox",
            Verdict::Wrong(exit::IO),
            format!(
                "only {} MiB are free in {}: telemetry will be refused; make room",
                free >> 20,
                place.display()
            ),
        ),
        Ok(free) if free < config.outbox.max_size => findings.add(
            "outbox",
            Verdict::Poor,
            format!(
                "{} MiB are free in {}, and max_size is {} MiB: make room or lower it",
                free >> 20,
                place.display(),
                config.outbox.max_size >> 20
            ),
        ),
        Ok(free) => {
            let detail = format!("{}, {} MiB free", path.display(), free >> 20);
            findings.add("outbox", Verdict::Well, detail);
        }
        Err(error) => findings.add("outbox", Verdict::Wrong(exit::IO), error.to_string()),
    }
}

/// Makes a file there and removes it.
fn may_write(directory: &Path) -> Result<(), String> {
    let file = directory.join(format!(".hark-doctor-{}", std::process::id()));
    let made = std::fs::OpenOptions::new().write(true).create_new(true).open(&file);
    made.map_err(|e| format!("write in {}: {e}", directory.display()))?;
    std::fs::remove_file(&file).map_err(|e| format!("remove {}: {e}", file.display()))
}

fn sensors(config: &Config, clock: Clock, findings: &mut Findings) {
    let zone = host::zone(&config.device.timezone);
    if let Err(detail) = zone {
        findings.add("timezone", Verdict::Wrong(exit::CONFIG), detail);
    }
    for (name, result) in sensing::examine(config, clock) {
        let result = result
            .map(|shown| format!("{name}: {shown}"))
            .map_err(|e| format!("{name}: {e}; is its driver loaded, its path right?"));
        findings.result("sensor", exit::UNAVAILABLE, result);
    }
}

fn ear(config: &Config, clock: Clock, findings: &mut Findings) {
    let planned =
        listening::plan(config, listening::Encore::default(), &ListenerFactory::detector());
    match &planned {
        Ok(Some(plan)) => {
            let detail =
                format!("weights and keyphrases are usable, second stage {}", plan.confirmer);
            findings.add("detector", Verdict::Well, detail);
        }
        Ok(None) => {}
        Err(failure) => findings.add("detector", Verdict::Wrong(failure.code), &failure.message),
    }
    let name = match &config.audio {
        AudioInput::Device(name) => name,
        AudioInput::Wav(path) => {
            let detail = format!("{} instead of a microphone", path.display());
            return findings.add("microphone", Verdict::Poor, detail);
        }
        AudioInput::None => {
            let detail = "audio.input is \"none\": this device does not listen";
            return findings.add("microphone", Verdict::Poor, detail);
        }
    };
    findings.result("microphone", exit::UNAVAILABLE, sound(name, clock));
}

/// Listens for a moment.
fn sound(name: &str, clock: Clock) -> Result<String, String> {
    let in_use = "if hark is running it may hold the card: systemctl stop hark, and try again";
    let mut stream = microphone::open(name, clock).map_err(|e| format!("{e}; {in_use}"))?;
    let wanted = SAMPLE_RATE_HZ as usize * LISTEN.as_secs() as usize;
    let mut samples = Vec::with_capacity(wanted);
    let began = clock.now();
    while samples.len() < wanted && clock.now().duration_since(began) < 2 * LISTEN {
        let read = stream.read_within(Duration::from_millis(200), &mut samples);
        read.map_err(|e| e.to_string())?;
    }
    if samples.len() < wanted / 2 {
        return Err(format!("{name} gives no sound; is it the right card? arecord -l lists them"));
    }
    let mut health = Health::new();
    health.push(&samples);
    let level = rms_dbfs(&samples);
    if level <= SILENCE_DBFS {
        return Err(format!("{name} gives digital silence: muted? alsamixer, F4"));
    }
    match health.at_fault() {
        Some(ailment) => Err(format!("{name}: {ailment}")),
        None => Ok(format!("{name}, {level:.0} dBFS")),
    }
}

async fn uplink(config: &Config, device: &str, clock: Clock, findings: &mut Findings) {
    let plan = match forwarding::plan(config, device) {
        Ok(plan) => plan.into_driver(),
        Err(failure) => {
            return findings.add("uplink", Verdict::Wrong(failure.code), failure.message);
        }
    };
    let mut session = plan.session;
    session.client_id = format!("{}-doctor-{}", session.client_id, std::process::id());
    session.session_expiry = Duration::ZERO;
    session.subscriptions.clear();
    let connector = Connector::new(plan.transport, plan.connect_timeout);
    for url in [plan.url].iter().chain(&plan.fallbacks) {
        let asked = tokio::time::timeout(3 * ANSWER, ask(&connector, url, &session, clock)).await;
        let answer = asked.unwrap_or_else(|_| Err("does not answer".to_owned()));
        // Some of them say what to look at already.
        let advice = |e: &str| match e.contains('?') {
            true => "",
            false => "; is the address right, the broker up, the way to it open?",
        };
        let result = answer.map_err(|e| format!("{url}: {e}{}", advice(&e)));
        findings.result("broker", exit::UNAVAILABLE, result);
    }
}

/// CONNECT, CONNACK, DISCONNECT: what was reached, or why it was not.
async fn ask(
    connector: &Connector,
    url: &BrokerUrl,
    settings: &Settings,
    clock: Clock,
) -> Result<String, String> {
    // A broker that does not know MQTT 5 is asked again with 3.1.1.
    let mut session = Session::new(settings.clone()).map_err(|e| e.to_string())?;
    loop {
        let connected = connector.connect(url).await.map_err(|e| e.to_string())?;
        let (how, mut stream) = (connected.how, connected.stream);
        let mut bytes = BytesMut::new();
        session.handle_connected(clock.now());
        session.poll_transmit(clock.now(), &mut bytes);
        let failed = |e: std::io::Error| e.to_string();
        stream.write_all(&bytes).await.map_err(failed)?;
        stream.flush().await.map_err(failed)?;
        let mut answer = vec![0; 4096];
        let read = tokio::time::timeout(ANSWER, stream.read(&mut answer)).await;
        let length = read.map_err(|_| "no CONNACK: is that port an MQTT broker's?")?;
        let length = length.map_err(failed)?;
        if length == 0 {
            session.handle_disconnected(clock.now(), "broker closed the connection");
        } else {
            session.handle_bytes(clock.now(), &answer[..length]);
        }
        let mut again = false;
        while let Some(notice) = session.poll_notice() {
            match notice {
                Notice::Connected { protocol, .. } => {
                    // DISCONNECT of either version: the will is not to be sent.
                    stream.write_all(&[0xe0, 0x00]).await.map_err(failed)?;
                    stream.flush().await.map_err(failed)?;
                    let how = if how.is_empty() { String::new() } else { format!(", {how}") };
                    return Ok(format!("{url}: {protocol}{how}"));
                }
                Notice::ConnectionRefused { reason } => return Err(reason),
                Notice::ProtocolChanged { .. } => again = true,
                Notice::Closed { reason } if !again => return Err(reason.to_string()),
                _ => {}
            }
        }
        if !again {
            return Err("an answer that is no CONNACK: is that port an MQTT broker's?".to_owned());
        }
    }
}

async fn ingest(config: &Config, findings: &mut Findings) {
    let Some(path) = &config.ingest.socket else {
        return findings.add("ingest", Verdict::Well, "switched off");
    };
    if UnixStream::connect(path).await.is_ok() {
        let detail = format!("{}: an agent is listening", path.display());
        return findings.add("ingest", Verdict::Well, detail);
    }
    // The agent makes directories that are missing; so look at the nearest that is there.
    let nearest = path.ancestors().skip(1).find(|parent| parent.is_dir());
    let result = may_write(nearest.unwrap_or(Path::new("/")));
    let advice = "run hark by its unit (RuntimeDirectory=hark), or set ingest.socket";
    findings.result(
        "ingest",
        exit::UNAVAILABLE,
        result
            .map(|()| format!("{}: nobody listens yet", path.display()))
            .map_err(|e| format!("{e}; {advice}")),
    );
}

async fn ops(config: &Config, findings: &mut Findings) {
    let Some(address) = config.ops.listen else {
        return findings.add("ops", Verdict::Well, "switched off");
    };
    match TcpListener::bind(address).await {
        Ok(_) => findings.add("ops", Verdict::Well, format!("{address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let detail = format!("{address} is in use: by a running hark? else set ops.listen");
            findings.add("ops", Verdict::Poor, detail);
        }
        Err(error) => {
            let detail = format!("listen on {address}: {error}; set ops.listen");
            findings.add("ops", Verdict::Wrong(exit::UNAVAILABLE), detail);
        }
    }
}
