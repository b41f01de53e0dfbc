//! From a broker's URL to a byte stream, whatever lies between.
//!
//! ```text
//!   name ──▶ addresses ──▶ TCP ──▶ (proxy: CONNECT) ──▶ (TLS) ──▶ (WebSocket) ──▶ Stream
//!            all of them,
//!            staggered
//! ```
//!
//! The session above knows only [`Stream`]; the configuration knows only [`BrokerUrl`] and
//! [`Settings`]. One [`Connector`] serves all connections of a process, so that TLS sessions are
//! resumed; before each connection it looks whether the certificates' files have changed.
//!
//! # Invariants
//! - Every step has a deadline of its own, and its error names the step.
//! - What is written is either still the caller's or a few KiB from the wire: a stream has TCP_NODELAY, a
//!   small send buffer in the kernel, and no layer between holds more than `WRITE_MAX` bytes. What
//!   is below cannot be overtaken by an alert any more.
//! - Nothing but TLS's own handshake leaves this device before the broker's certificate is checked.
//! - Each error is one line that reads on after "broker at HOST:PORT".
//!
//! # Deliberately absent
//! Certificates that are not checked (there is no such switch), pinned public keys, TLS to the proxy,
//! SOCKS, TLS 1.1 and older.

mod error;
mod proxy;
mod tcp;
mod tls;
mod tls_text;
mod url;
mod websocket;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

pub use error::{ConnectError, SetupError};
pub use tls::{FilesChange, TlsFiles};
pub use url::{BrokerUrl, ProxyUrl, ProxyUrlError, Scheme, UrlError};

/// The most that one write hands to a layer above TCP, which may keep it back.
const WRITE_MAX: usize = 4 * 1024;

/// A byte stream to a broker, whatever is below it.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What besides the URL decides how a stream is made.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// For `mqtts` and `wss`.
    pub tls: TlsFiles,
    /// The way out, where there is only one.
    pub proxy: Option<ProxyUrl>,
    /// The file with the proxy's password, read anew for each connection.
    pub proxy_password_file: Option<PathBuf>,
}

/// A stream, and in a few words how it was made: `TLS 1.3, resumed`; empty for bare TCP.
pub struct Connected {
    /// For the session.
    pub stream: Box<dyn Stream>,
    /// For people.
    pub how: String,
}

/// Makes streams; see the [module](self).
#[derive(Debug)]
pub struct Connector {
    settings: Settings,
    limit: Duration,
    tls: Mutex<tls::Source>,
}

impl Connector {
    /// A connector whose every step may take `limit`.
    pub fn new(settings: Settings, limit: Duration) -> Self {
        let tls = Mutex::new(tls::Source::new(settings.tls.clone()));
        Self { settings, limit, tls }
    }

    /// Reads all files that connections will need, those for TLS if it is used, so that a wrong
    /// one is found at the start.
    ///
    /// # Errors
    /// The first that cannot be used, with its key.
    pub fn check(&self, tls: bool) -> Result<(), SetupError> {
        if let Some(file) = &self.settings.proxy_password_file {
            let read = super::host::read_secret(file);
            read.map_err(|problem| SetupError { key: "proxy_password_file", problem })?;
        }
        if tls { self.source().refresh().map(drop) } else { Ok(()) }
    }

    /// What has happened to the certificates' files since this was asked last.
    pub fn take_files_change(&self) -> Option<FilesChange> {
        self.source().take_change()
    }

    /// A stream to the broker.
    ///
    /// Cancellation: dropping the future closes what was opened.
    ///
    /// # Errors
    /// Of the last address tried, or of the layer that failed; the caller waits and tries again.
    pub async fn connect(&self, url: &BrokerUrl) -> Result<Connected, ConnectError> {
        let mut how = Vec::new();
        let mut stream: Box<dyn Stream> = match &self.settings.proxy {
            None => Box::new(tcp::connect(&url.host, url.port, self.limit).await?),
            Some(proxy) => {
                how.push(format!("proxy {}", proxy.address()));
                Box::new(self.through(proxy, url).await?)
            }
        };
        if url.scheme.is_tls() {
            let config = self.source().refresh()?;
            let handshake = tls::connect(config, &self.settings.tls, &url.host, stream);
            let secured = self.within("TLS handshake", handshake).await?;
            how.push(secured.describe());
            stream = Box::new(secured);
        }
        if matches!(url.scheme, Scheme::Ws | Scheme::Wss) {
            let upgrade = websocket::connect(url, stream);
            stream = Box::new(self.within("WebSocket upgrade", upgrade).await?);
            how.push("WebSocket".to_owned());
        }
        Ok(Connected { stream, how: how.join(", ") })
    }

    async fn through(
        &self,
        proxy: &ProxyUrl,
        url: &BrokerUrl,
    ) -> Result<tokio::net::TcpStream, ConnectError> {
        let failed = |problem: String| ConnectError::Proxy { proxy: proxy.address(), problem };
        let tcp = tcp::connect(&proxy.host, proxy.port, self.limit).await;
        let mut tcp = tcp.map_err(|e| failed(format!("which {e}")))?;
        let login = match (&self.settings.proxy_password_file, proxy.user.as_str()) {
            (_, "") => None,
            (None, user) => Some((user, Vec::new())),
            (Some(file), user) => Some((user, super::host::read_secret(file).map_err(failed)?)),
        };
        let target = url.address();
        let opening = proxy::open(&mut tcp, &target, login.as_ref());
        self.within("proxy's answer", async { opening.await.map_err(failed) }).await?;
        Ok(tcp)
    }

    async fn within<T>(
        &self,
        step: &'static str,
        work: impl Future<Output = Result<T, ConnectError>>,
    ) -> Result<T, ConnectError> {
        let limit = self.limit;
        timeout(limit, work).await.unwrap_or(Err(ConnectError::StepTimedOut { step, limit }))
    }

    /// A panic with the lock held leaves at worst an old configuration, which is valid.
    fn source(&self) -> std::sync::MutexGuard<'_, tls::Source> {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// If the broker ended a connection by refusing us below MQTT, why: the reading side learns it only
/// after the handshake (RFC 8446 §4.4.2.4).
pub fn refusal(error: &std::io::Error) -> Option<String> {
    let text = error.get_ref()?.downcast_ref::<tls_text::Refused>()?;
    Some(text.to_string())
}
