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
}

/// The running broker; it ends with the process.
#[derive(Debug)]
pub struct Broker {
    /// Where a client reaches it: `mqtt://127.0.0.1:PORT`.
    pub url: String,
    /// What arrives, as a subscriber to everything sees it. Bounded; the oldest reader is ours.
    pub arrivals: mpsc::Receiver<Arrival>,
}

/// Why the broker did not start.
#[derive(Debug, thiserror::Error)]
#[error("start the embedded broker: {0}")]
pub struct BrokerError(String);

/// Arrivals that wait to be shown; more are not counted by the display.
const ARRIVALS: usize = 1024;

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
    spawn("broker-watch", move || {
        // The sending half holds the subscription; it lives as long as the broker.
        let _keep = sender;
        while let Ok(notification) = receiver.recv() {
            if let Some(Notification::Forward(forward)) = notification {
                let topic = String::from_utf8_lossy(&forward.publish.topic).into_owned();
                let arrival = Arrival { topic, bytes: forward.publish.payload.len() };
                if arrived.blocking_send(arrival).is_err() {
                    return;
                }
            }
        }
    })?;
    wait_until_open(listen)?;
    Ok(Broker { url: format!("mqtt://{listen}"), arrivals })
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
