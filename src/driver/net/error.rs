//! Why there is no stream.

use std::io;
use std::time::Duration;

/// Why there is no stream. Each reads on after "broker at HOST:PORT".
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("has no known address: is the name right, is there a network? ({0})")]
    Resolve(io::Error),
    /// Somebody is there and nobody listens.
    #[error("refused the connection: is it running?")]
    Refused,
    /// Nobody answered in time.
    #[error("did not answer within {0:?}: is there a network, does a firewall stand between?")]
    TimedOut(Duration),
    /// There was a connection, and a later step did not get done.
    #[error("took the connection, but the {step} took longer than {limit:?}")]
    StepTimedOut {
        /// Which.
        step: &'static str,
        /// What it was given.
        limit: Duration,
    },
    /// Anything else.
    #[error("cannot be reached: {0}")]
    Io(io::Error),
    /// The proxy, or the way to it.
    #[error("cannot be reached through the proxy at {proxy}, {problem}")]
    Proxy {
        /// Its address.
        proxy: String,
        /// What it said, beginning with "which".
        problem: String,
    },
    /// The TLS handshake failed.
    #[error("{0}")]
    Tls(String),
    /// The WebSocket upgrade failed.
    #[error("{0}")]
    WebSocket(String),
    /// A file that the connection needs.
    #[error("is not tried: uplink.{0}")]
    Setup(#[from] SetupError),
}

/// A file that connections need cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct SetupError {
    /// The setting in `[uplink]` that names the file.
    pub key: &'static str,
    /// What is wrong, naming the file, and what would be right.
    pub problem: String,
}
