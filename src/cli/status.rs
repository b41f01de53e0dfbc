//! `hark status`: what the running agent says of itself.

use std::io::Write;
use std::path::PathBuf;

use serde_json::Value;

use super::client::Agent;
use super::{Failure, exit};

/// Show what the running agent says of itself
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's ingest socket
    #[arg(long, value_name = "PATH", default_value = "/run/hark/ingest.sock")]
    pub socket: PathBuf,
    /// One JSON object instead of lines for people
    #[arg(long)]
    pub json: bool,
}

/// Prints the status; faults are part of it and no failure of this command.
///
/// # Errors
/// 69: no agent listens. 74: standard output is closed.
pub(super) async fn run(args: &Args, mut out: impl Write) -> Result<(), Failure> {
    let connected = Agent::connect(&args.socket).await;
    let mut agent = connected.map_err(|e| e.failure(&args.socket))?;
    let body = agent.get("/status").await?;
    let status: Value = agent.understand(&body)?;
    let text = if args.json { format!("{status}\n") } else { describe(&status) };
    out.write_all(text.as_bytes())
        .map_err(|e| Failure::new(exit::IO, format!("write to standard output: {e}")))
}

/// A line for each part; what is wrong comes last, where the eye rests.
fn describe(status: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    let yes = |value: &Value| value.as_bool().unwrap_or_default();
    let mut lines = Vec::new();
    let mut line = |name: &str, what: String| lines.push(format!("{name:<10}{what}\n"));

    let (device, version) = (text(&status["device"]), text(&status["version"]));
    let up = duration(count(&status["uptime_s"]));
    line("device", format!("{device}, hark {version}, up {up}, clock {}", text(&status["clock"])));
    let uplink = &status["uplink"];
    let state = if yes(&uplink["connected"]) { "connected" } else { "NOT CONNECTED" };
    line("uplink", format!("{state}: {}", text(&uplink["news"])));
    let counts = ["published", "acknowledged", "received", "refused"];
    let counts = counts.map(|name| format!("{} {name}", count(&uplink[name])));
    line("", counts.join(", "));
    let waiting = &status["outbox"]["waiting"];
    let lanes = ["alert", "status", "telemetry"];
    let lanes = lanes.map(|lane| format!("{} {lane}", count(&waiting[lane])));
    line("waiting", lanes.join(", "));
    match &status["audio"] {
        Value::Null => line("audio", "this device does not listen".to_owned()),
        audio => {
            let level = |value: &Value| match value.as_f64() {
                Some(dbfs) => format!("{dbfs:.0} dBFS"),
                None => "no sound yet".to_owned(),
            };
            let (now, floor) = (level(&audio["level_dbfs"]), level(&audio["noise_floor_dbfs"]));
            let (input, heard) = (text(&audio["input"]), count(&audio["detections"]));
            line("audio", format!("{input}: {now}, noise floor {floor}, {heard} keyphrases heard"));
            line("", format!("second stage {}", text(&audio["confirmer"])));
        }
    }
    let ready = if yes(&status["ready"]) { "a cry would be heard and told" } else { "NOT READY" };
    line("ready", ready.to_owned());
    if let Value::Object(alarm) = &status["alarm"] {
        let test = if yes(&alarm["testalarm"]) { "a test, " } else { "" };
        let calling = match alarm["contact"].as_str() {
            Some(contact) => format!(", calling {contact}"),
            None => String::new(),
        };
        let (state, since) = (text(&alarm["state"]), text(&alarm["since"]));
        line(
            "ALARM",
            format!("{test}{state}, open since {since}{calling}: {}", text(&alarm["id"])),
        );
    }
    for fault in status["faults"].as_array().into_iter().flatten() {
        let (part, problem) = (text(&fault["part"]), text(&fault["problem"]));
        line("FAULT", format!("{part}, for {}: {problem}", duration(count(&fault["for_s"]))));
    }
    lines.concat()
}

/// Two units: `3 d 4 h`, `12 min 5 s`.
fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Alarm, Status};

    #[test]
    fn every_part_has_its_line_and_faults_come_last() {
        let text = describe(&Status::example().to_value());
        let (ready, fault) =
            (text.find("\nready").unwrap(), text.find("\nFAULT     a \"b\"").unwrap());
        assert!(ready < fault, "{text}");
        assert!(text.contains("waiting   1 alert, 2 status, 3 telemetry\n"), "{text}");
        assert!(text.contains("NOT CONNECTED") && !text.contains("ALARM"), "{text}");
        assert!(text.contains("-42 dBFS") || text.contains("-41 dBFS"), "{text}");
    }

    #[test]
    fn an_open_alarm_has_a_line_with_whom_it_calls() {
        let alarm = Alarm {
            id: "019a".to_owned(),
            state: "raised",
            since: "2026-11-22T10:00:00.000Z".to_owned(),
            contact: Some("Anna".to_owned()),
            testalarm: false,
        };
        let shown =
            |alarm| describe(&Status { alarm: Some(alarm), ..Status::example() }.to_value());
        let text = shown(alarm.clone());
        let line = "\nALARM     raised, open since 2026-11-22T10:00:00.000Z, calling Anna: 019a\n";
        assert!(text.contains(line), "{text}");
        let test = shown(Alarm { state: "pending", contact: None, testalarm: true, ..alarm });
        let line = "\nALARM     a test, pending, open since 2026-11-22T10:00:00.000Z: 019a\n";
        assert!(test.contains(line), "{test}");
    }

    #[test]
    fn a_duration_has_its_two_largest_units() {
        let shown = [59, 60, 3_700, 100_000].map(duration);
        assert_eq!(shown, ["59 s", "1 min 0 s", "1 h 1 min", "1 d 3 h"]);
    }
}
