//! `hark`: the process on an emergency device.
//!
//! A cry for help, a button or a sensor becomes a CloudEvent, is kept in an on-disk outbox and
//! published over MQTT QoS 1 until it is acknowledged. `ARCHITECTURE.md` draws the picture; the
//! modules stand here in the order in which an event flows.

pub mod cli;
pub mod config;

pub mod clock;
pub mod event;

pub mod audio;
pub mod sensor;
pub mod voice;

pub mod alarm;

pub mod outbox;

pub mod downlink;
pub mod forwarder;
pub mod uplink;

pub mod status;

pub mod driver;

pub mod agent;
#[cfg(feature = "simulator")]
pub mod sim;
pub mod supervisor;
