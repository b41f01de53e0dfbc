//! Where a broker is, and where a proxy is: the two kinds of URL that the configuration holds.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The path of a WebSocket URL that has none: what brokers listen on unless told otherwise.
const WEBSOCKET_PATH: &str = "/mqtt";

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
    /// Whether the bytes are encrypted.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Mqtts | Self::Wss)
    }

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
    /// The path of a WebSocket, beginning with `/`, `/mqtt` where none is given; else empty.
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
        let port = parse_port(port, default_port)?;
        let path = match scheme {
            Scheme::Mqtt | Scheme::Mqtts => String::new(),
            Scheme::Ws | Scheme::Wss if path.starts_with('/') => path.into(),
            Scheme::Ws | Scheme::Wss => format!("{WEBSOCKET_PATH}{path}"),
        };
        Ok(Self { scheme, host: host.into(), port, path })
    }
}

/// Where an HTTP proxy is: `http://[USER@]HOST[:PORT]`. The password stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    /// The login's name; empty where the proxy wants none.
    pub user: String,
    /// A name or an address; IPv6 without its brackets.
    pub host: String,
    /// The port, given or 8080.
    pub port: u16,
}

/// The port of a proxy that is not given: what proxies listen on unless told otherwise.
const PROXY_PORT: u16 = 8080;

/// Why a proxy's URL cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyUrlError {
    /// Not `http://`, or more than host and port behind it.
    #[error("proxy must be written http://[USER@]HOST[:PORT]")]
    Form,
    /// It would be printed with the URL.
    #[error("proxy URL must not hold a password: use proxy_password_file")]
    Password,
    /// Host or port.
    #[error("proxy URL: {0}")]
    Address(UrlError),
}

impl FromStr for ProxyUrl {
    type Err = ProxyUrlError;

    fn from_str(url: &str) -> Result<Self, ProxyUrlError> {
        let rest = url.strip_prefix("http://").ok_or(ProxyUrlError::Form)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(ProxyUrlError::Form);
        }
        let (user, authority) = rest.rsplit_once('@').unwrap_or(("", rest));
        if user.contains(':') {
            return Err(ProxyUrlError::Password);
        }
        let (host, port) = split_authority(authority).map_err(ProxyUrlError::Address)?;
        let port = parse_port(port, PROXY_PORT).map_err(ProxyUrlError::Address)?;
        Ok(Self { user: user.into(), host: host.into(), port })
    }
}

impl ProxyUrl {
    /// `host:port`, as people write it.
    pub fn address(&self) -> String {
        address(&self.host, self.port)
    }
}

fn parse_port(port: Option<&str>, default: u16) -> Result<u16, UrlError> {
    let Some(port) = port else { return Ok(default) };
    match port.parse() {
        Ok(number) if number > 0 && port.bytes().all(|b| b.is_ascii_digit()) => Ok(number),
        _ => Err(UrlError::Port(port.into())),
    }
}

fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
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
        address(&self.host, self.port)
    }
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
            ("ws://b", Scheme::Ws, "b", 80, "/mqtt"),
            ("ws://b/", Scheme::Ws, "b", 80, "/"),
            ("wss://b?x=1", Scheme::Wss, "b", 443, "/mqtt?x=1"),
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
    fn proxies_are_read_and_never_hold_a_password() {
        let read = |url: &str| url.parse::<ProxyUrl>().map(|p| (p.user, p.host, p.port));
        let of = |user: &str, host: &str, port| Ok((user.to_owned(), host.to_owned(), port));
        assert_eq!(read("http://p:3128"), of("", "p", 3128));
        assert_eq!(read("http://flat@p/"), of("flat", "p", 8080));
        assert_eq!(read("http://[::1]:1"), of("", "::1", 1));
        assert_eq!(read("http://a:b@p"), Err(ProxyUrlError::Password));
        for wrong in ["https://p", "p:3128", "http://p/x", "socks5://p"] {
            assert_eq!(read(wrong), Err(ProxyUrlError::Form), "{wrong}");
        }
        assert!(matches!(read("http://:1"), Err(ProxyUrlError::Address(UrlError::Host(_)))));
        assert!(matches!(read("http://p:0"), Err(ProxyUrlError::Address(UrlError::Port(_)))));
    }
}
