//! A TCP proxy that is a bad network: shut, cut at any byte with FIN or RST, or in front of a
//! broker that knows only MQTT 3.1.1. Its choices come from a seed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hark::clock::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::free_port;

/// What the network does to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Lets everything through.
    Good,
    /// Cuts `cuts` connections, each after at most `within` bytes in one of the directions.
    Cutting { cuts: usize, within: usize },
    /// Answers MQTT 5 as a broker does that knows only 3.1.1, and lets 3.1.1 through.
    OldBroker,
    /// Takes connections and then neither reads nor writes.
    BlackHole,
}

/// Listens on a port of its own until it is dropped.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    target: u16,
    mood: Mutex<Mood>,
    open: AtomicBool,
    rng: Mutex<Rng>,
    accepted: AtomicUsize,
    cuts: AtomicUsize,
}

impl Proxy {
    /// A proxy before the broker on port `target`.
    pub async fn start(target: u16, mood: Mood, seed: u64) -> Self {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("bind");
        let shared = Arc::new(Shared {
            target,
            mood: Mutex::new(mood),
            open: AtomicBool::new(true),
            rng: Mutex::new(Rng::from_seed(seed)),
            accepted: AtomicUsize::new(0),
            cuts: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                if accepting.open.load(Ordering::SeqCst) {
                    accepting.accepted.fetch_add(1, Ordering::SeqCst);
                    connections.spawn(serve(stream, Arc::clone(&accepting)));
                }
            }
        });
        Self { port, shared, task }
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Shut, it closes every new connection at once; those that stand stay.
    pub fn set_open(&self, open: bool) {
        self.shared.open.store(open, Ordering::SeqCst);
    }

    /// How many connections it took.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many it cut.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// When and how one connection is cut.
struct Fate {
    up_left: usize,
    down_left: usize,
    reset: bool,
}

impl Shared {
    fn fate(&self) -> Fate {
        let mut fate = Fate { up_left: usize::MAX, down_left: usize::MAX, reset: false };
        let mood = *self.mood.lock().expect("lock");
        if let Mood::Cutting { cuts, within } = mood
            && self.cuts.load(Ordering::SeqCst) < cuts
        {
            self.cuts.fetch_add(1, Ordering::SeqCst);
            let mut rng = self.rng.lock().expect("lock");
            let left = 1 + rng.u64() as usize % within;
            match rng.u64() % 2 {
                0 => fate.up_left = left,
                _ => fate.down_left = left.div_ceil(20),
            }
            fate.reset = rng.u64().is_multiple_of(2);
        }
        fate
    }
}

async fn serve(mut device: TcpStream, shared: Arc<Shared>) {
    let Ok(mut broker) = TcpStream::connect(("127.0.0.1", shared.target)).await else { return };
    let mood = *shared.mood.lock().expect("lock");
    let (mut up, mut down) = (vec![0; 4096], vec![0; 4096]);
    if mood == Mood::BlackHole {
        return std::future::pending().await;
    }
    let mut fate = shared.fate();
    let mut first = mood == Mood::OldBroker;
    loop {
        let (from_device, data, left) = tokio::select! {
            n = device.read(&mut up) => (true, n.map(|n| &up[..n]), &mut fate.up_left),
            n = broker.read(&mut down) => (false, n.map(|n| &down[..n]), &mut fate.down_left),
        };
        let Ok(data) = data else { return };
        if data.is_empty() {
            return;
        }
        if std::mem::take(&mut first) && from_device {
            let level = data.windows(5).find(|w| &w[..4] == b"MQTT").map(|w| w[4]);
            if level != Some(4) {
                device.write_all(&[0x20, 2, 0, 1]).await.ok();
                return;
            }
        }
        let passed = &data[..data.len().min(*left)];
        *left -= passed.len();
        let cut = *left == 0;
        let to = if from_device { &mut broker } else { &mut device };
        if to.write_all(passed).await.is_err() {
            return;
        }
        if cut {
            if fate.reset {
                device.set_zero_linger().ok();
                broker.set_zero_linger().ok();
            }
            return;
        }
    }
}
