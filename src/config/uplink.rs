//! `[uplink]`: the way to the broker, and how it is spoken to.

use std::path::PathBuf;
use std::time::Duration;

use super::reader::{self, Section};

/// `[uplink]`: the way to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// `mqtt://HOST[:PORT]`, or with `mqtts`, `ws`, `wss`.
    pub url: String,
    /// Tried in this order when the first stays down.
    pub fallback_urls: Vec<String>,
    /// `http://[USER@]HOST[:PORT]`. `None`: straight out.
    pub proxy: Option<String>,
    /// The file that holds the proxy's password.
    pub proxy_password_file: Option<PathBuf>,
    /// Certificates of the CAs to trust. `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// The device's own certificate and its chain.
    pub cert_file: Option<PathBuf>,
    /// The key to it.
    pub key_file: Option<PathBuf>,
    /// Revocation lists.
    pub crl_file: Option<PathBuf>,
    /// What to ask for by ALPN. Empty: nothing.
    pub alpn: String,
    /// Which version of MQTT is spoken.
    pub protocol: Protocol,
    /// Over MQTT 5 events go in binary mode.
    pub binary: bool,
    /// Publishes in flight at most.
    pub window: u16,
    /// Silence after which the connection is tested.
    pub keepalive: Duration,
    /// Empty: none.
    pub username: String,
    /// The file that holds the password. `None`: no password.
    pub password_file: Option<PathBuf>,
}

/// `protocol` of `[uplink]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// MQTT 5, and 3.1.1 where the broker refuses it.
    Auto,
    /// MQTT 5 only.
    V5,
    /// MQTT 3.1.1 only.
    V311,
}

/// Reads the section.
pub(super) fn read(mut section: Section<'_>) -> Uplink {
    let url = section
        .checked("url", "mqtt://localhost:1883".to_owned(), broker_url, |url| reader::quoted(url));
    let fallback_urls = section.list("fallback_urls", &[], "[\"mqtts://b.example\"]", broker_url);
    let proxy = section.checked(
        "proxy",
        None,
        |text| match text {
            "" => Ok(None),
            url if url.strip_prefix("http://").is_some_and(|rest| !rest.is_empty()) => {
                Ok(Some(url.to_owned()))
            }
            other => Err(format!("is `{other}`; write http://[USER@]HOST[:PORT]")),
        },
        |url| reader::quoted(url.as_deref().unwrap_or_default()),
    );
    let proxy_password_file = file(&mut section, "proxy_password_file");
    let ca_file = file(&mut section, "ca_file");
    let cert_file = file(&mut section, "cert_file");
    let key_file = file(&mut section, "key_file");
    let crl_file = file(&mut section, "crl_file");
    let alpn = section.checked(
        "alpn",
        String::new(),
        |text| match text.len() {
            0..=255 => Ok(text.to_owned()),
            long => Err(format!("has {long} bytes; a protocol's name has at most 255")),
        },
        |text| reader::quoted(text),
    );
    let protocol = section.choice(
        "protocol",
        Protocol::Auto,
        &[("auto", Protocol::Auto), ("5", Protocol::V5), ("3.1.1", Protocol::V311)],
    );
    let read_mode = |text: &str| match text {
        "structured" => Ok(false),
        "binary" if protocol == Protocol::V311 => {
            Err("is `binary`, which MQTT 3.1.1 cannot carry; \"structured\", or protocol \"auto\""
                .into())
        }
        "binary" => Ok(true),
        other => Err(format!("is `{other}`; one of: structured, binary")),
    };
    let show_mode = |binary: &bool| reader::quoted(if *binary { "binary" } else { "structured" });
    let binary = section.checked("mode", false, read_mode, show_mode);
    let window = section.integer("window", 32, 1..=1000);
    let keepalive = section.duration("keepalive", Duration::from_secs(30), Duration::from_secs(1));
    let username = section.text("username", "");
    let password_file = file(&mut section, "password_file");
    let uplink = Uplink {
        url,
        fallback_urls,
        proxy,
        proxy_password_file,
        ca_file,
        cert_file,
        key_file,
        crl_file,
        alpn,
        protocol,
        binary,
        window: u16::try_from(window).unwrap_or(32),
        keepalive,
        username,
        password_file,
    };
    refuse_without_effect(&mut section, &uplink);
    section.finish();
    uplink
}

fn broker_url(text: &str) -> Result<String, String> {
    let schemes = ["mqtt", "mqtts", "ws", "wss"];
    match text.split_once("://") {
        Some((scheme, host)) if schemes.contains(&scheme) && !host.is_empty() => {
            Ok(text.to_owned())
        }
        _ => Err(format!("is `{text}`; write mqtt://HOST[:PORT], or mqtts, ws or wss")),
    }
}

/// The path of a file; empty: none.
fn file(section: &mut Section<'_>, key: &'static str) -> Option<PathBuf> {
    section.checked(
        key,
        None,
        |text| Ok((!text.is_empty()).then(|| PathBuf::from(text))),
        |path| reader::quoted(&path.as_ref().map_or(String::new(), |p| p.display().to_string())),
    )
}

/// Settings that need another one to mean anything.
fn refuse_without_effect(section: &mut Section<'_>, uplink: &Uplink) {
    let tls = |url: &String| url.starts_with("mqtts://") || url.starts_with("wss://");
    let tls = tls(&uplink.url) || uplink.fallback_urls.iter().any(tls);
    let mut refuse = |key: &str, set: bool, needed: bool, message: &str| {
        if set && !needed {
            let origin = section.origin(key);
            section.problem(key, origin, message);
        }
    };
    let no_tls = "has no effect: no URL is mqtts:// or wss://";
    refuse("ca_file", uplink.ca_file.is_some(), tls, no_tls);
    refuse("cert_file", uplink.cert_file.is_some(), tls, no_tls);
    refuse("key_file", uplink.key_file.is_some(), tls, no_tls);
    refuse("crl_file", uplink.crl_file.is_some(), tls, no_tls);
    refuse("alpn", !uplink.alpn.is_empty(), tls, no_tls);
    let (cert, key) = (uplink.cert_file.is_some(), uplink.key_file.is_some());
    refuse("cert_file", cert && tls, key, "needs key_file beside it");
    refuse("key_file", key && tls, cert, "needs cert_file beside it");
    let user = uplink.proxy.as_ref().is_some_and(|proxy| proxy.contains('@'));
    let no_user = "has no effect without a user in proxy: http://USER@HOST:PORT";
    refuse("proxy_password_file", uplink.proxy_password_file.is_some(), user, no_user);
}
