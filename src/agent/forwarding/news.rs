//! What the session says of itself: for the log, for whoever watches, and as faults.

use std::time::Duration;

use super::{COMMANDS, Pump};
use crate::agent::Happening;
use crate::downlink;
use crate::forwarder::Mode;
use crate::uplink::{Notice, Version};

/// A session that held so long ends the suspicion that another device has our client id.
const STEADY: Duration = Duration::from_secs(60);
/// Failed attempts to connect after which the path counts as a fault.
const ATTEMPTS_BEFORE_FAULT: u32 = 3;

impl Pump {
    /// News of the connection: for the log, for whoever watches, and as a fault where it lasts.
    pub(super) fn show(&mut self, notice: &Notice) {
        let line = match notice {
            Notice::Connected { protocol, session_present, .. } => {
                self.connected.send_replace(true);
                self.reporter.happened(Happening::Connected);
                self.faults.down = false;
                self.tell("uplink", None);
                self.faults.steady = self.faults.contested.then(|| self.clock.now() + STEADY);
                let off_first_path = self.off_first_path.clone();
                self.tell("path", off_first_path.as_deref());
                let kept = if *session_present { ", session resumed" } else { "" };
                let structured = match (self.rules.mode, protocol) {
                    (Mode::Binary, Version::V311) => {
                        ", which has no binary mode: events go structured"
                    }
                    _ => "",
                };
                format!("connected over {protocol}{kept}{structured}")
            }
            Notice::Subscribed => {
                self.tell(COMMANDS, None);
                "subscribed to what comes down".to_owned()
            }
            Notice::SubscriptionRefused { reason } => {
                if reason.contains(&*downlink::commands_topic(&self.device)) {
                    self.tell(COMMANDS, Some(reason));
                } else {
                    self.no_receipts(reason);
                }
                reason.clone()
            }
            Notice::Contested { reason } => {
                if !std::mem::replace(&mut self.faults.contested, true) {
                    self.tell("client-id", Some(reason));
                }
                return;
            }
            Notice::Closed { reason } => {
                self.faults.steady = None;
                self.connected.send_replace(false);
                self.reporter.happened(Happening::Disconnected);
                reason.to_string()
            }
            Notice::ProtocolChanged { to, reason } => format!("trying {to}: {reason}"),
            Notice::PresenceRefused { reason } => format!("presence: {reason}"),
            Notice::ConnectionRefused { reason } => {
                self.tell("uplink", Some(reason));
                reason.clone()
            }
            Notice::Reached { how } => format!("reached {how}"),
            Notice::PathChanged { first, message } => {
                self.off_first_path = (!first).then(|| message.clone());
                message.clone()
            }
            Notice::FilesInForce => {
                self.tell("certificates", None);
                "changed files are in force".to_owned()
            }
            Notice::FilesUnusable { problem } => {
                let problem = format!("uplink.{problem}; what was in force before stays");
                self.tell("certificates", Some(&problem));
                problem
            }
            Notice::Retrying { attempt, message, .. } => {
                // Not `==`: an attempt that changes the path at once has no notice of its own.
                if *attempt >= ATTEMPTS_BEFORE_FAULT
                    && !std::mem::replace(&mut self.faults.down, true)
                {
                    self.tell("uplink", Some(message));
                }
                message.clone()
            }
            Notice::Published { .. }
            | Notice::Acknowledged { .. }
            | Notice::Refused { .. }
            | Notice::Received { .. } => return,
        };
        tracing::info!("uplink: {line}");
        self.reporter.happened(Happening::Uplink(line));
    }
}
