//! A bad network that keeps a record: a TCP proxy that cuts, stalls, slows and loses, and reads what
//! passes. What it saw acknowledged is the tests' witness; it shares no code with the agent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hark::clock::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, sleep_until, timeout};

use super::free_port;

/// How the network is, for connections from now on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weather {
    /// Everything passes.
    Good,
    /// Each connection meets a fault that the seed chooses, within so many bytes from the device.
    Rough { within: usize },
    /// Everything passes, at so many bytes a second each way and so much later.
    Slow { bytes_per_s: f64, delay: Duration },
}

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Reset,
    Close,
    /// The broker's answers are lost, and half a second later the connection.
    LosesAnswers,
    /// Nothing passes any more and nobody is told.
    HalfOpen,
    /// Nothing passes for a while.
    Stalls,
    /// 64 kbit/s from there on, for a while.
    Slows,
}

const FAULTS: [Fault; 6] =
    [Fault::Reset, Fault::Close, Fault::LosesAnswers, Fault::HalfOpen, Fault::Stalls, Fault::Slows];
const A_WHILE: Duration = Duration::from_millis(1500);
const FAST: (f64, Duration) = (f64::INFINITY, Duration::ZERO);
const MODEM: (f64, Duration) = (8000.0, Duration::from_millis(100));

/// What passed.
#[derive(Debug, Default)]
pub struct Record {
    /// Ids of events whose PUBACK of success was handed to the device, and when.
    pub acknowledged: BTreeMap<String, Instant>,
    /// Every event's payload as first seen.
    pub payloads: BTreeMap<String, Vec<u8>>,
    /// Copies beyond the first.
    pub duplicates: usize,
    /// Ids of which two copies differed.
    pub altered: BTreeSet<String>,
    /// Faults that struck.
    pub faults: usize,
}

/// Listens on a port of its own until it is dropped.
pub struct Wire {
    port: u16,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    target: u16,
    weather: Mutex<Weather>,
    rng: Mutex<Rng>,
    record: Mutex<Record>,
}

impl Wire {
    /// A network before the broker on port `target`.
    pub async fn start(target: u16, weather: Weather, seed: u64) -> Self {
        let port = free_port();
        let socket = TcpSocket::new_v4().expect("socket");
        socket.set_reuseaddr(true).expect("reuse");
        if let Weather::Slow { .. } = weather {
            // Else what the device sends would stand in our buffer, which a slow link has not.
            socket.set_recv_buffer_size(4096).expect("buffer");
        }
        socket.bind(([127, 0, 0, 1], port).into()).expect("bind");
        let listener = socket.listen(64).expect("listen");
        let shared = Arc::new(Shared {
            target,
            weather: Mutex::new(weather),
            rng: Mutex::new(Rng::from_seed(seed)),
            record: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { port, shared, task }
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    pub fn set_weather(&self, weather: Weather) {
        *self.shared.weather.lock().expect("lock") = weather;
    }

    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.shared.record.lock().expect("lock")
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((device, _)) = listener.accept().await {
        if let Ok(broker) = TcpStream::connect(("127.0.0.1", shared.target)).await {
            connections.spawn(serve(device, broker, Arc::clone(&shared)));
        }
    }
}

/// Bytes on their way in one direction.
struct Pipe {
    link: (f64, Duration),
    queue: VecDeque<(Instant, Vec<u8>)>,
    free_at: Instant,
}

impl Pipe {
    fn new(link: (f64, Duration)) -> Self {
        Self { link, queue: VecDeque::new(), free_at: Instant::now() }
    }

    fn push(&mut self, bytes: &[u8]) {
        let takes = Duration::from_secs_f64(bytes.len() as f64 / self.link.0);
        self.free_at = self.free_at.max(Instant::now()) + takes;
        self.queue.push_back((self.free_at + self.link.1, bytes.to_vec()));
    }

    fn due(&self) -> Option<Instant> {
        self.queue.front().map(|(at, _)| *at)
    }

    /// A slow link takes no more while it is busy.
    fn takes_more(&self) -> bool {
        self.free_at <= Instant::now() + Duration::from_millis(50)
    }
}

async fn serve(mut device: TcpStream, mut broker: TcpStream, shared: Arc<Shared>) {
    let weather = *shared.weather.lock().expect("lock");
    device.set_nodelay(true).ok();
    broker.set_nodelay(true).ok();
    let link = match weather {
        Weather::Slow { bytes_per_s, delay } => (bytes_per_s, delay),
        _ => FAST,
    };
    let (mut up, mut down) = (Pipe::new(link), Pipe::new(link));
    let (mut fault, mut left) = (Fault::None, usize::MAX);
    if let Weather::Rough { within } = weather {
        let mut rng = shared.rng.lock().expect("lock");
        fault = FAULTS[rng.u64() as usize % FAULTS.len()];
        left = 1 + rng.u64() as usize % within;
    }
    let mut tap = Tap::default();
    let (mut from_device, mut from_broker) = (vec![0; 1024], vec![0; 1024]);
    loop {
        let far = Instant::now() + Duration::from_secs(3600);
        let (up_due, down_due) = (up.due().unwrap_or(far), down.due().unwrap_or(far));
        // A busy link is looked at again when it is free, an idle one when something comes.
        let busy = Instant::now() + Duration::from_millis(10);
        let look = if up.takes_more() && down.takes_more() { far } else { busy };
        tokio::select! {
            read = device.read(&mut from_device), if up.takes_more() => match read {
                Ok(bytes) if bytes > 0 => {
                    up.push(&from_device[..bytes]);
                    left = left.saturating_sub(bytes);
                }
                _ => return,
            },
            read = broker.read(&mut from_broker), if down.takes_more() => match read {
                Ok(bytes) if bytes > 0 => down.push(&from_broker[..bytes]),
                _ => return,
            },
            () = sleep_until(up_due.into()) => if let Some((_, bytes)) = up.queue.pop_front() {
                tap.up(&bytes, &shared.record);
                if broker.write_all(&bytes).await.is_err() { return; }
            },
            () = sleep_until(down_due.into()) => if let Some((_, bytes)) = down.queue.pop_front() {
                if device.write_all(&bytes).await.is_err() { return; }
                tap.down(&bytes, &shared.record);
            },
            () = sleep_until(look.into()) => {}
        }
        if left == 0 {
            left = usize::MAX;
            shared.record.lock().expect("lock").faults += 1;
            match fault {
                Fault::None => {}
                Fault::Close => return,
                Fault::Reset => {
                    device.set_zero_linger().ok();
                    broker.set_zero_linger().ok();
                    return;
                }
                Fault::LosesAnswers => {
                    // What is under way still arrives; its answers do not.
                    for (_, bytes) in up.queue.drain(..) {
                        tap.up(&bytes, &shared.record);
                        broker.write_all(&bytes).await.ok();
                    }
                    let lose =
                        async { while matches!(broker.read(&mut from_broker).await, Ok(1..)) {} };
                    timeout(Duration::from_millis(500), lose).await.ok();
                    return;
                }
                Fault::HalfOpen => {
                    // Reads so that the device's end is noticed, and gives nothing on.
                    let end =
                        async { while matches!(device.read(&mut from_device).await, Ok(1..)) {} };
                    timeout(Duration::from_secs(30), end).await.ok();
                    return;
                }
                Fault::Stalls => sleep(A_WHILE).await,
                Fault::Slows => {
                    (up.link, down.link) = (MODEM, MODEM);
                    (fault, left) = (Fault::None, 8000);
                    continue;
                }
            }
            (up.link, down.link) = (FAST, FAST);
        }
    }
}

/// Reads the packets of one connection.
#[derive(Default)]
struct Tap {
    up: Vec<u8>,
    down: Vec<u8>,
    version: u8,
    /// Packet id → event.
    open: BTreeMap<u16, String>,
}

/// Takes the first whole packet out: its first byte and its body.
fn take_packet(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (mut length, mut at) = (0usize, 1);
    loop {
        let byte = *bytes.get(at)?;
        length |= usize::from(byte & 0x7f) << (7 * (at - 1));
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    if bytes.len() < at + length {
        return None;
    }
    let body = bytes[at..at + length].to_vec();
    let first = bytes[0];
    bytes.drain(..at + length);
    Some((first, body))
}

impl Tap {
    fn up(&mut self, bytes: &[u8], record: &Mutex<Record>) {
        self.up.extend_from_slice(bytes);
        while let Some((first, body)) = take_packet(&mut self.up) {
            match first >> 4 {
                1 => self.version = body[6],
                3 => self.published(&body, record),
                _ => {}
            }
        }
    }

    fn published(&mut self, body: &[u8], record: &Mutex<Record>) {
        let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let packet_id = u16::from_be_bytes([body[2 + topic], body[3 + topic]]);
        let mut payload = &body[4 + topic..];
        if self.version == 5 {
            let (mut length, mut at) = (0usize, 0);
            loop {
                length |= usize::from(payload[at] & 0x7f) << (7 * at);
                at += 1;
                if payload[at - 1] & 0x80 == 0 {
                    break;
                }
            }
            payload = &payload[at + length..];
        }
        let Some(id) = event_id(payload) else { return };
        self.open.insert(packet_id, id.clone());
        let mut record = record.lock().expect("lock");
        match record.payloads.get(&id).map(|first| first == payload) {
            None => drop(record.payloads.insert(id, payload.to_vec())),
            Some(same) => {
                record.duplicates += 1;
                if !same {
                    record.altered.insert(id);
                }
            }
        }
    }

    fn down(&mut self, bytes: &[u8], record: &Mutex<Record>) {
        self.down.extend_from_slice(bytes);
        while let Some((first, body)) = take_packet(&mut self.down) {
            let success = body.get(2).is_none_or(|code| *code < 0x80);
            if first >> 4 == 4 && success {
                let packet_id = u16::from_be_bytes([body[0], body[1]]);
                if let Some(id) = self.open.remove(&packet_id) {
                    record
                        .lock()
                        .expect("lock")
                        .acknowledged
                        .entry(id)
                        .or_insert_with(Instant::now);
                }
            }
        }
    }
}

/// The `id` of an event in structured mode.
pub fn event_id(payload: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(payload).ok()?;
    let rest = text.split_once(r#""id":""#)?.1;
    Some(rest.split_once('"')?.0.to_owned())
}
