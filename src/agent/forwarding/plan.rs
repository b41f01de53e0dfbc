//! From the settings to what the uplink needs, checked.

use std::hash::{Hash, Hasher};

use crate::cli::{Failure, VERSION, exit};
use crate::config;
use crate::downlink;
use crate::driver::{host, net, uplink as driver};
use crate::forwarder::{Confirm, Mode, Rules};
use crate::uplink::{Credentials, Presence, Protocol, Settings};

/// What the uplink needs, checked.
#[derive(Debug, Clone)]
pub(in crate::agent) struct Plan {
    pub(super) device: String,
    pub(super) driver: driver::Config,
    pub(super) rules: Rules,
    credentials: u64,
}

impl Plan {
    /// Tells whether password, certificates or keys differ from those of another plan.
    pub(in crate::agent) fn credentials(&self) -> u64 {
        self.credentials
    }

    /// The part that says how to get to the broker and who we are there.
    pub(in crate::agent) fn into_driver(self) -> driver::Config {
        self.driver
    }
}

/// Checks the settings and reads the password.
///
/// # Errors
/// 78, naming the key.
pub(in crate::agent) fn plan(config: &config::Config, device: &str) -> Result<Plan, Failure> {
    let (rules, commands) = (rules(config), config.commands.enabled);
    let config = &config.uplink;
    let wrong = |key: &str, e: &dyn std::fmt::Display| {
        Failure::new(exit::CONFIG, format!("uplink.{key}: {e}"))
    };
    let url = config.url.parse().map_err(|e: net::UrlError| wrong("url", &e))?;
    let fallbacks = config.fallback_urls.iter().map(|url| url.parse());
    let fallbacks =
        fallbacks.collect::<Result<_, net::UrlError>>().map_err(|e| wrong("fallback_urls", &e))?;
    let proxy = config.proxy.as_deref().map(str::parse).transpose();
    let transport = net::Settings {
        tls: net::TlsFiles {
            ca_file: config.ca_file.clone(),
            cert_file: config.cert_file.clone(),
            key_file: config.key_file.clone(),
            crl_file: config.crl_file.clone(),
            alpn: config.alpn.clone(),
        },
        proxy: proxy.map_err(|e: net::ProxyUrlError| wrong("proxy", &e))?,
        proxy_password_file: config.proxy_password_file.clone(),
    };
    let password = match &config.password_file {
        None => Vec::new(),
        Some(file) => host::read_secret(file).map_err(|e| wrong("password_file", &e))?,
    };
    let said_by_us = |state: &str| {
        serde_json::json!({
            "state": state,
            "version": VERSION,
            "boot_id": host::boot_id(),
        })
        .to_string()
        .into()
    };
    let presence = Presence {
        topic: format!("hark/{device}/presence").into(),
        birth: said_by_us("online"),
        will: said_by_us("offline"),
    };
    let mut settings = Settings::new(device, presence);
    settings.protocol = match config.protocol {
        config::Protocol::Auto => Protocol::Auto,
        config::Protocol::V5 => Protocol::V5,
        config::Protocol::V311 => Protocol::V311,
    };
    settings.keepalive = config.keepalive;
    settings.window = config.window;
    settings.credentials = (!config.username.is_empty())
        .then(|| Credentials { username: config.username.clone(), password });
    if rules.confirm.contains(&Confirm::Receipt) {
        settings.subscriptions.push(downlink::receipts_topic(device));
    }
    if commands {
        settings.subscriptions.push(downlink::commands_topic(device));
    }
    settings.validate().map_err(|e| wrong("", &e))?;
    let mut driver = driver::Config::new(url, settings);
    driver.fallbacks = fallbacks;
    driver.transport = transport;
    driver.password_file.clone_from(&config.password_file);
    driver.check().map_err(|e| wrong(e.key, &e.problem))?;
    Ok(Plan { device: device.to_owned(), driver, rules, credentials: credentials(config) })
}

/// A number for the contents of all files with secrets and certificates.
fn credentials(config: &config::Uplink) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    for file in [
        &config.password_file,
        &config.proxy_password_file,
        &config.ca_file,
        &config.cert_file,
        &config.key_file,
        &config.crl_file,
    ] {
        file.as_deref().map(host::read_secret).hash(&mut hasher);
    }
    hasher.finish()
}

fn rules(config: &config::Config) -> Rules {
    let confirm = |wanted| if wanted { Confirm::Receipt } else { Confirm::Broker };
    Rules {
        confirm: config.receipts.map(|lane| confirm(lane.wanted)),
        receipt_timeout: config.receipts.map(|lane| lane.timeout),
        mode: if config.uplink.binary { Mode::Binary } else { Mode::Structured },
    }
}
