//! Keeps the agent's [`Status`] from what happens; whoever asks gets a copy at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::watch;

use super::{Happening, reporter::lock};
use crate::audio::NoiseFloor;
use crate::clock::Clock;
use crate::driver::{host, outbox_writer::OutboxHandle};
use crate::outbox::Levels;
use crate::status::{Alarm, Audio, Fault, Outbox, Status, Uplink};

/// Cheap to clone; all clones are the same board.
#[derive(Debug, Clone)]
pub(super) struct Board(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    device: String,
    boot_id: String,
    clock: Clock,
    began: Instant,
    levels: watch::Receiver<Levels>,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// `None` where the device does not listen.
    audio: Option<Audio>,
    floor: NoiseFloor,
    uplink: Uplink,
    alarm: Option<Alarm>,
    /// Since when, and why.
    faults: BTreeMap<String, (Instant, String)>,
}

impl Board {
    /// Of a device that does not listen yet.
    pub(super) fn new(device: &str, outbox: &OutboxHandle, clock: Clock) -> Self {
        Self(Arc::new(Shared {
            device: device.to_owned(),
            boot_id: host::boot_id(),
            clock,
            began: clock.now(),
            levels: outbox.levels(),
            known: Mutex::new(Known {
                audio: None,
                floor: NoiseFloor::default(),
                uplink: Uplink::default(),
                alarm: None,
                faults: BTreeMap::new(),
            }),
        }))
    }

    /// Notes what happened.
    pub(super) fn note(&self, happening: &Happening) {
        let mut known = lock(&self.0.known);
        let Known { audio, floor, uplink, faults, .. } = &mut *known;
        match happening {
            Happening::Listening(input) => {
                *floor = NoiseFloor::default();
                if let Some(audio) = audio {
                    audio.input.clone_from(input);
                }
            }
            Happening::Level(dbfs) => {
                floor.push(*dbfs);
                if let Some(audio) = audio {
                    audio.level_dbfs = Some(*dbfs);
                    audio.noise_floor_dbfs = floor.dbfs();
                }
            }
            Happening::Detected { .. } => {
                if let Some(audio) = audio {
                    audio.detections += 1;
                }
            }
            Happening::Connected => {
                uplink.connected = true;
                uplink.connections += 1;
            }
            Happening::Disconnected => uplink.connected = false,
            Happening::Uplink(news) => uplink.news.clone_from(news),
            Happening::Published { .. } => uplink.published += 1,
            Happening::Acknowledged { .. } | Happening::Unconfirmed { .. } => {
                uplink.acknowledged += 1;
            }
            Happening::Received { .. } => uplink.received += 1,
            Happening::Deferred { .. } => uplink.refused += 1,
            Happening::Fault { part, problem } => {
                let fault = (self.0.clock.now(), problem.clone());
                faults.insert(part.clone(), fault);
            }
            Happening::Mended(part) => {
                faults.remove(part);
            }
            Happening::Alarm { .. }
            | Happening::Accepted { .. }
            | Happening::Waiting(_)
            | Happening::Reading { .. }
            | Happening::Threshold { .. }
            | Happening::Inactivity { .. } => {}
        }
    }

    /// Notes that the device listens from now on, or no longer. `confirmer`: what [`Audio::confirmer`]
    /// says.
    pub(super) fn note_listening(&self, confirmer: Option<&str>) {
        let ear = |confirmer: &str| Audio { confirmer: confirmer.to_owned(), ..Audio::default() };
        lock(&self.0.known).audio = confirmer.map(ear);
    }

    /// Notes which alarm is open.
    pub(super) fn note_alarm(&self, alarm: Option<Alarm>) {
        lock(&self.0.known).alarm = alarm;
    }

    /// How the agent is now.
    pub(super) fn status(&self) -> Status {
        let Shared { device, boot_id, clock, began, levels, known } = &*self.0;
        let (now, levels, known) = (clock.now(), *levels.borrow(), lock(known));
        let seconds_since = |at: Instant| now.saturating_duration_since(at).as_secs();
        let faults: Vec<_> = known
            .faults
            .iter()
            .map(|(part, (at, problem))| Fault {
                part: part.clone(),
                problem: problem.clone(),
                for_s: seconds_since(*at),
            })
            .collect();
        let hears = known.audio.as_ref().is_none_or(|audio| {
            audio.level_dbfs.is_some()
                && !known.faults.contains_key("microphone")
                && !known.faults.contains_key("detector")
        });
        Status {
            device: device.clone(),
            version: crate::cli::VERSION.to_owned(),
            boot_id: boot_id.clone(),
            uptime_s: seconds_since(*began),
            clock: clock.wall().state.as_str(),
            healthy: !faults.iter().any(Fault::is_of_the_device),
            ready: hears && known.uplink.connected,
            audio: known.audio.clone(),
            uplink: known.uplink.clone(),
            outbox: Outbox {
                waiting: Outbox::by_lane(levels.records),
                accepted: Outbox::by_lane(levels.tails.map(|tail| tail.map_or(0, |at| at.0))),
                telemetry_refused: levels.refused,
                disk_full: levels.short,
            },
            alarm: known.alarm.clone(),
            faults,
        }
    }
}
