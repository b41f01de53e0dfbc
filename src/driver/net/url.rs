//! From a broker's URL to a byte stream: the seam behind which TLS and WebSocket will stand.
//!
//! The session above knows only [`Stream`]; the configuration knows only [`BrokerUrl`]. All four
//! schemes are read, so that a configuration can be checked; what cannot be connected yet says so.
//!
//! A stream has TCP_NODELAY, since an alert must not wait for company, and a small send buffer in
//! the kernel: what stands there cannot be overtaken by an alert any more.
//!
//! Absent: proxies, racing IPv6 against IPv4 (addresses are tried in turn).

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, lookup_host};
use tokio::time::timeout;

use crate::clock::Clock;

/// Kernel send buffer. Linux doubles it for its own bookkeeping, which leaves about this much for
/// bytes: two windows of ordinary events in 100 ms, and on a slow link no long queue before an alert.
const SEND_BUFFER_BYTES: u32 = 16 * 1024;

/// A byte stream to a broker, whatever is below it.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How the bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `mqtt`: TCP.
    Mqtt,
    /// `mqtts`: TLS over TCP.
    Mqtts,
    /// `ws`: WebSocket.
    Ws,
    /// `wss`: WebSocket over TLS.
    Wss,
}

impl Scheme {
    const ALL: [(Self, &'static str, u16); 4] = [
        (Self::Mqtt, "mqtt", 1883),
        (Self::Mqtts, "mqtts", 8883),
        (Self::Ws, "ws", 80),
        (Self::Wss, "wss", 443),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(s, ..)| *s == self).map_or("", |(_, name, _)| name)
    }
}

/// Where a broker is: `scheme://host[:port][/path]`, the path for WebSocket only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// How the bytes travel.
    pub scheme: Scheme,
    /// A name or an address; IPv6 without its brackets.
    pub host: String,
    /// The port, given or the scheme's own.
    pub port: u16,
    /// The path of a WebSocket, beginning with `/`; else empty.
    pub path: String,
}

/// Why a broker's URL cannot be read. None prints a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// No `://`, or a scheme that is none of ours.
    #[error("broker URL must begin with mqtt://, mqtts://, ws:// or wss://")]
    Scheme,
    /// A user or password before an `@`: they would be printed with the URL.
    #[error("broker URL must not hold a user name or password: use username and password_file")]
    Login,
    /// Nothing, or no host name.
    #[error("broker URL has no valid host: {0:?}")]
    Host(String),
    /// Not 1 to 65535.
    #[error("broker URL has an invalid port: {0:?}")]
    Port(String),
    /// A path where the scheme has none.
    #[error("broker URL of scheme {0} must end after the port, without a path")]
    Path(&'static str),
}

impl FromStr for BrokerUrl {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = url.split_once("://").ok_or(UrlError::Scheme)?;
        let known = |(_, name, _): &&(Scheme, &str, u16)| name.eq_ignore_ascii_case(scheme);
        let (scheme, name, default_port) =
            *Scheme::ALL.iter().find(known).ok_or(UrlError::Scheme)?;
        let (authority, path) = match rest.find(['/', '?', '#']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err(UrlError::Login);
        }
        if !(path.is_empty() || path == "/") && matches!(scheme, Scheme::Mqtt | Scheme::Mqtts) {
            return Err(UrlError::Path(name));
        }
        let (host, port) = split_authority(authority)?;
        let port = match port {
            None => default_port,
            Some(port) => match port.parse() {
                Ok(number) if number > 0 && port.bytes().all(|b| b.is_ascii_digit()) => number,
                _ => return Err(UrlError::Port(port.into())),
            },
        };
        let path = match scheme {
            Scheme::Mqtt | Scheme::Mqtts => String::new(),
            Scheme::Ws | Scheme::Wss if path.starts_with('/') => path.into(),
            Scheme::Ws | Scheme::Wss => format!("/{path}"),
        };
        Ok(Self { scheme, host: host.into(), port, path })
    }
}

/// Host and port of `host`, `host:port`, `[v6]` or `[v6]:port`.
fn split_authority(authority: &str) -> Result<(&str, Option<&str>), UrlError> {
    let bad = || UrlError::Host(authority.into());
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(bad)?;
        if !matches!(host.parse(), Ok(IpAddr::V6(_))) {
            return Err(bad());
        }
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(bad()),
        };
    }
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    // A colon in the port is an IPv6 address without its brackets.
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.is_empty() || !host.chars().all(valid) || port.is_some_and(|p| p.contains(':')) {
        return Err(bad());
    }
    Ok((host, port))
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.name(), self.address(), self.path)
    }
}

impl BrokerUrl {
    /// `host:port`, as people write it.
    pub fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// Whether [`connect`] can do this scheme.
    ///
    /// # Errors
    /// [`ConnectError::NotYet`], which names the scheme.
    pub fn supported(&self) -> Result<(), ConnectError> {
        match self.scheme {
            Scheme::Mqtt => Ok(()),
            other => Err(ConnectError::NotYet(other.name())),
        }
    }
}

/// Why there is no stream. Each reads on after "broker at HOST:PORT".
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The scheme is known but not built.
    #[error("cannot be reached over {0}:// in this version yet: use mqtt://")]
    NotYet(&'static str),
    /// The name has no address.
    #[error("has no known address: is the name right, is there a network? ({0})")]
    Resolve(io::Error),
    /// Somebody is there and nobody listens.
    #[error("refused the connection: is it running?")]
    Refused,
    /// Nobody answered in time.
    #[error("did not answer within {0:?}: is there a network, does a firewall stand between?")]
    TimedOut(Duration),
    /// Anything else.
    #[error("cannot be reached: {0}")]
    Io(io::Error),
}

/// A stream to the broker, within `limit`, name resolution included. All addresses of the name are
/// tried in turn, each with an even share of the time that is left.
///
/// # Errors
/// Of the last address tried; the caller waits and tries again.
pub async fn connect(
    url: &BrokerUrl,
    limit: Duration,
    clock: &Clock,
) -> Result<Box<dyn Stream>, ConnectError> {
    url.supported()?;
    let deadline = clock.now() + limit;
    let addresses: Vec<SocketAddr> =
        match timeout(limit, lookup_host((url.host.as_str(), url.port))).await {
            Err(_) => return Err(ConnectError::TimedOut(limit)),
            Ok(Err(error)) => return Err(ConnectError::Resolve(error)),
            Ok(Ok(found)) => found.collect(),
        };
    let mut last = ConnectError::Resolve(io::Error::other("the name has no addresses"));
    for (tried, address) in addresses.iter().enumerate() {
        let left = share(deadline, clock.now(), addresses.len() - tried);
        match timeout(left, connect_tcp(*address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                last = ConnectError::Refused;
            }
            Ok(Err(error)) => last = ConnectError::Io(error),
            Err(_) => last = ConnectError::TimedOut(limit),
        }
    }
    Err(last)
}

fn share(deadline: Instant, now: Instant, addresses_left: usize) -> Duration {
    let left = deadline.saturating_duration_since(now);
    left / u32::try_from(addresses_left).unwrap_or(u32::MAX).max(1)
}

async fn connect_tcp(address: SocketAddr) -> io::Result<Box<dyn Stream>> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    Ok(Box::new(socket.connect(address).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Result<(Scheme, String, u16, String), UrlError> {
        url.parse::<BrokerUrl>().map(|u| (u.scheme, u.host, u.port, u.path))
    }

    #[test]
    fn urls_of_all_schemes_are_read() {
        let table = [
            ("mqtt://broker.example", Scheme::Mqtt, "broker.example", 1883, ""),
            ("mqtt://broker.example/", Scheme::Mqtt, "broker.example", 1883, ""),
            ("MQTT://10.0.0.7:1884", Scheme::Mqtt, "10.0.0.7", 1884, ""),
            ("mqtt://[::1]", Scheme::Mqtt, "::1", 1883, ""),
            ("mqtt://[fe80::1]:1885", Scheme::Mqtt, "fe80::1", 1885, ""),
            ("mqtts://b_1.local", Scheme::Mqtts, "b_1.local", 8883, ""),
            ("ws://b", Scheme::Ws, "b", 80, "/"),
            ("wss://b:8443/mqtt?x=1", Scheme::Wss, "b", 8443, "/mqtt?x=1"),
        ];
        for (url, scheme, host, port, path) in table {
            assert_eq!(parsed(url), Ok((scheme, host.into(), port, path.into())), "{url}");
        }
    }

    #[test]
    fn urls_that_cannot_be_meant_are_refused() {
        let table = [
            ("broker.example:1883", UrlError::Scheme),
            ("http://b", UrlError::Scheme),
            ("mqtt://user:secret@b", UrlError::Login),
            ("mqtt://", UrlError::Host(String::new())),
            ("mqtt://:1883", UrlError::Host(":1883".into())),
            ("mqtt://::1", UrlError::Host("::1".into())),
            ("mqtt://[::1", UrlError::Host("[::1".into())),
            ("mqtt://[b]:1", UrlError::Host("[b]:1".into())),
            ("mqtt://a b", UrlError::Host("a b".into())),
            ("mqtt://b:0", UrlError::Port("0".into())),
            ("mqtt://b:+1", UrlError::Port("+1".into())),
            ("mqtt://b:65536", UrlError::Port("65536".into())),
            ("mqtt://b:", UrlError::Port(String::new())),
            ("mqtt://b/topic", UrlError::Path("mqtt")),
        ];
        for (url, error) in table {
            assert_eq!(parsed(url), Err(error), "{url}");
        }
    }

    #[test]
    fn urls_are_written_as_they_are_read() {
        for url in ["mqtt://b:1883", "mqtt://[::1]:1", "wss://b:443/mqtt"] {
            let read: BrokerUrl = url.parse().expect("valid");
            assert_eq!(read.to_string(), url);
        }
    }

    #[test]
    fn schemes_that_are_not_built_say_so() {
        let url: BrokerUrl = "mqtts://b".parse().expect("valid");
        let error = url.supported().expect_err("not built");
        let expected = "cannot be reached over mqtts:// in this version yet: use mqtt://";
        assert_eq!(error.to_string(), expected);
    }
}
