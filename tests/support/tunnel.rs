//! Something in the middle that listens in: before a broker, as an HTTP proxy, or with nothing behind it.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::free_port;

/// Listens on a port of its own until it is dropped, and keeps all that devices say.
pub struct Tunnel {
    port: u16,
    seen: Arc<Mutex<Vec<u8>>>,
    cut: watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
enum Kind {
    To(u16),
    /// Takes the tunnels that come with this Basic login.
    HttpProxy(&'static str),
    /// Says this and then nothing.
    Greeting(&'static [u8]),
}

impl Tunnel {
    /// Before the listener on this port.
    pub async fn to(port: u16) -> Self {
        Self::start(Kind::To(port)).await
    }

    pub async fn http_proxy(login: &'static str) -> Self {
        Self::start(Kind::HttpProxy(login)).await
    }

    pub async fn greeting(words: &'static [u8]) -> Self {
        Self::start(Kind::Greeting(words)).await
    }

    async fn start(kind: Kind) -> Self {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("bind");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let cut = watch::Sender::new(0);
        let (writer, cutting) = (Arc::clone(&seen), cut.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((device, _)) = listener.accept().await {
                let (kind, seen) = (kind.clone(), Arc::clone(&writer));
                let mut cut = cutting.subscribe();
                connections.spawn(async move {
                    tokio::select! {
                        _ = serve(kind, device, &seen) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { port, seen, cut, task }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Every byte that devices have sent, one connection's after the other's as they came.
    pub fn seen(&self) -> Vec<u8> {
        self.seen.lock().expect("lock").clone()
    }

    /// Ends the connections that stand.
    pub fn cut(&self) {
        self.cut.send_modify(|times| *times += 1);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(kind: Kind, mut device: TcpStream, seen: &Mutex<Vec<u8>>) -> std::io::Result<()> {
    let port = match kind {
        Kind::To(port) => port,
        Kind::Greeting(words) => {
            device.write_all(words).await?;
            return std::future::pending().await;
        }
        Kind::HttpProxy(login) => {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(device.read_u8().await?);
            }
            seen.lock().expect("lock").extend_from_slice(&head);
            let head = String::from_utf8_lossy(&head).into_owned();
            if !head.contains(&format!("Proxy-Authorization: Basic {login}\r\n")) {
                let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
                return device.write_all(answer).await;
            }
            device.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            let target = head.split_whitespace().nth(1).unwrap_or_default();
            target.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or_default()
        }
    };
    let mut broker = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut up, mut down) = (vec![0; 4096], vec![0; 4096]);
    loop {
        tokio::select! {
            n = device.read(&mut up) => match n? {
                0 => return Ok(()),
                n => {
                    seen.lock().expect("lock").extend_from_slice(&up[..n]);
                    broker.write_all(&up[..n]).await?;
                }
            },
            n = broker.read(&mut down) => match n? {
                0 => return Ok(()),
                n => device.write_all(&down[..n]).await?,
            },
        }
    }
}
