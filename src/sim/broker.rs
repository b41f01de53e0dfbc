//! An MQTT broker inside this process (rumqttd), so that the simulator needs nothing else.
//!
//! It keeps everything in memory: good for a demonstration, never a witness for durability.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use rumqttd::{ConnectionSettings, Notification, RouterConfig, ServerSettings};
use tokio::sync::mpsc;

/// A message that arrived at the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Where it was published.
    pub topic: String,
    /// Bytes of its payload.
    pub bytes: usize,
    /// The attribute `type`, where it is an event in structured mode.
    pub event_type: Option<String>,
}

/// Speaks for the care side. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Care(std::sync::mpsc::SyncSender<(String, String)>);

impl Care {
    /// Has a command of this type sent to a device.
    ///
    /// # Errors
    /// One line: too many wait.
    pub fn command(&self, device: &str, command: &str) -> Result<(), String> {
        let wanted = (format!("hark/{device}/commands"), command.to_owned());
        self.0.try_send(wanted).map_err(|_| "the broker is busy; try again".to_owned())
    }
}

/// The running broker; it ends with the process.
#[derive(Debug)]
pub struct Broker {
    /// Sends commands to the device.
    pub care: Care,
    /// Where it listens.
    pub address: SocketAddr,
    /// What arrives, as a subscriber to everything sees it. Bounded; the oldest reader is ours.
    pub arrivals: mpsc::Receiver<Arrival>,
}

/// Why the broker did not start.
#[derive(Debug, thiserror::Error)]
#[error("start the embedded broker: {0}")]
pub struct BrokerError(String);

/// Arrivals that wait to be shown; more are not counted by the display.
const ARRIVALS: usize = 1024;
/// Commands that wait to be sent at most.
const COMMANDS: usize = 8;

/// Starts it on a free port of the loopback interface, speaking MQTT 5.
///
/// # Errors
/// No port, or the broker refused its configuration.
pub fn start() -> Result<Broker, BrokerError> {
    let failed = |e: &dyn std::fmt::Display| BrokerError(e.to_string());
    let listen = free_port().map_err(|e| failed(&e))?;
    let mut broker = rumqttd::Broker::new(config(listen));
    let (mut sender, mut receiver) = broker.link("hark-simulator").map_err(|e| failed(&e))?;
    sender.subscribe("hark/#").map_err(|e| failed(&e))?;
    let (arrived, arrivals) = mpsc::channel(ARRIVALS);

    spawn("broker", move || {
        if let Err(error) = broker.start() {
            tracing::error!("the embedded broker ended: {error}");
        }
    })?;
    let (care, commands) = std::sync::mpsc::sync_channel::<(String, String)>(COMMANDS);
    spawn("broker-care", move || {
        for (number, (topic, command)) in commands.iter().enumerate() {
            let event = serde_json::json!({
                "specversion": "1.0",
                "id": format!("page-{}-{number}", std::process::id()),
                "source": "urn:hark:simulator:care",
                "type": command,
                "data": { "by": "the page" },
            });
            if let Err(error) = sender.publish(topic, event.to_string()) {
                tracing::warn!("{command} is not sent: {error}");
            }
        }
        // The sending half holds the subscription; it lives as long as the broker.
        loop {
            std::thread::park();
        }
    })?;
    spawn("broker-watch", move || {
        while let Ok(notification) = receiver.recv() {
            if let Some(Notification::Forward(forward)) = notification {
                let topic = String::from_utf8_lossy(&forward.publish.topic).into_owned();
                let payload = &forward.publish.payload;
                let event: Option<Typed> = serde_json::from_slice(payload).ok();
                let event_type = event.map(|event| event.event_type);
                let arrival = Arrival { topic, bytes: payload.len(), event_type };
                if arrived.blocking_send(arrival).is_err() {
                    return;
                }
            }
        }
    })?;
    wait_until_open(listen)?;
    Ok(Broker { address: listen, care: Care(care), arrivals })
}

/// What is read of an event.
#[derive(serde::Deserialize)]
struct Typed {
    #[serde(rename = "type")]
    event_type: String,
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), BrokerError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    thread.map(drop).map_err(|e| BrokerError(e.to_string()))
}

fn free_port() -> std::io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// The broker binds on a thread of its own; a client that comes too early would wait for its backoff.
fn wait_until_open(address: SocketAddr) -> Result<(), BrokerError> {
    for _ in 0..100 {
        if std::net::TcpStream::connect(address).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(BrokerError(format!("{address} did not open within 2 s")))
}

fn config(listen: SocketAddr) -> rumqttd::Config {
    let connections = ConnectionSettings {
        connection_timeout_ms: 5_000,
        max_payload_size: 256 * 1024,
        max_inflight_count: 200,
        auth: None,
        external_auth: None,
        dynamic_filters: true,
    };
    let server = ServerSettings {
        name: "simulator".to_owned(),
        listen,
        tls: None,
        next_connection_delay_ms: 1,
        connections,
    };
    let router = RouterConfig {
        max_connections: 16,
        max_outgoing_packet_count: 200,
        max_segment_size: 1 << 20,
        max_segment_count: 10,
        ..RouterConfig::default()
    };
    rumqttd::Config {
        router,
        v5: Some(HashMap::from([("1".to_owned(), server)])),
        ..rumqttd::Config::default()
    }
}
