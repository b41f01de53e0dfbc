//! `hark emit`: CloudEvents JSON to a running agent.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::value::RawValue;

use super::client::Agent;
use super::{Failure, exit};
use crate::driver::ingest::{MAX_BATCH, MAX_BODY_BYTES};
use crate::event::{Event, Lane, Value, json};

/// Hand CloudEvents to a running agent; exits 0 only after all of them are on its disk
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's ingest socket
    #[arg(long, value_name = "PATH", default_value = "/run/hark/ingest.sock")]
    pub socket: PathBuf,
    /// Put every event into this lane: alert, status or telemetry
    #[arg(long)]
    pub lane: Option<Lane>,
    /// CloudEvents in JSON, one or one a line; standard input if it is missing or `-`
    pub file: Option<PathBuf>,
}

/// Input that is read at most, in bytes.
const MAX_INPUT_BYTES: u64 = 1 << 30;

/// Sends all events and prints a line for each that was accepted.
///
/// # Errors
/// 74: the input cannot be read or holds what is no CloudEvent; nothing of that batch was accepted.
/// 69: no agent listens, or it refuses.
pub async fn run(args: &Args, mut out: impl std::io::Write) -> Result<(), Failure> {
    let name =
        args.file.as_deref().map_or("standard input".into(), |file| file.display().to_string());
    let events = parse(&name, &read(args.file.as_deref(), &name)?, args.lane)?;
    if events.is_empty() {
        return Err(Failure::new(exit::IO, format!("{name} holds no event")));
    }
    let mut agent = Agent::connect(&args.socket).await.map_err(|e| e.failure(&args.socket))?;
    for batch in batches(&events) {
        let accepted = send(&mut agent, batch).await?;
        out.write_all(accepted.as_bytes())
            .map_err(|e| Failure::new(exit::IO, format!("write to standard output: {e}")))?;
    }
    Ok(())
}

fn read(file: Option<&Path>, name: &str) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    let result = match file {
        Some(path) if path != Path::new("-") => {
            std::fs::File::open(path).and_then(|f| f.take(MAX_INPUT_BYTES).read_to_end(&mut text))
        }
        _ => std::io::stdin().take(MAX_INPUT_BYTES).read_to_end(&mut text),
    };
    result.map_err(|e| Failure::new(exit::IO, format!("read {name}: {e}")))?;
    Ok(text)
}

/// One event, one a line, or a pretty-printed one over many lines: JSON values in a row.
fn parse(name: &str, text: &[u8], lane: Option<Lane>) -> Result<Vec<Vec<u8>>, Failure> {
    let mut events = Vec::new();
    for value in serde_json::Deserializer::from_slice(text).into_iter::<&RawValue>() {
        let place = events.len() + 1;
        let wrong = |what: String| Failure::new(exit::IO, format!("{name}: event {place}: {what}"));
        let value = value.map_err(|e| wrong(format!("no JSON: {e}")))?;
        let mut event: Event =
            json::parse(value.get().as_bytes()).map_err(|e| wrong(e.to_string()))?;
        if let Some(lane) = lane {
            let asked = Value::from(lane.as_str());
            event.set_extension("lane", asked).map_err(|e| wrong(e.to_string()))?;
        }
        events.push(json::to_vec(&event));
    }
    Ok(events)
}

/// Events in a row that fit into one request.
fn batches(events: &[Vec<u8>]) -> impl Iterator<Item = &[Vec<u8>]> {
    let mut rest = events;
    std::iter::from_fn(move || {
        let mut bytes = 2;
        let fits = |event: &&Vec<u8>| {
            bytes += event.len() + 1;
            bytes <= MAX_BODY_BYTES
        };
        let count = rest.iter().take(MAX_BATCH).take_while(fits).count().max(1);
        let (batch, later) = rest.split_at_checked(count)?;
        rest = later;
        Some(batch)
    })
}

async fn send(agent: &mut Agent, batch: &[Vec<u8>]) -> Result<String, Failure> {
    let body = [b"[".as_slice(), &batch.join(&b","[..]), b"]"].concat();
    let body = agent.post("/events", json::BATCH_MEDIA_TYPE, body).await?;
    let body: serde_json::Value = agent.understand(&body)?;
    let lines = body["accepted"].as_array().into_iter().flatten().map(|a| format!("{a}\n"));
    Ok(lines.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#;

    #[test]
    fn one_event_or_one_a_line_or_a_pretty_one_are_taken() {
        for (text, count) in [
            (EVENT.to_owned(), 1),
            (format!("{EVENT}\n{EVENT}\n"), 2),
            (EVENT.replace(',', ",\n  "), 1),
            (String::new(), 0),
        ] {
            assert_eq!(parse("f", text.as_bytes(), None).unwrap().len(), count, "{text}");
        }
        let text = format!("{EVENT}\n{{\"specversion\":\"1.0\"}}");
        let failure = parse("f", text.as_bytes(), None).unwrap_err();
        assert!(failure.message.starts_with("f: event 2: attribute `id`"), "{failure}");
    }

    #[test]
    fn the_lane_option_wins_over_the_event() {
        let text = EVENT.replace('}', r#","lane":"status"}"#);
        let events = parse("f", text.as_bytes(), Some(Lane::Alert)).unwrap();
        assert!(String::from_utf8_lossy(&events[0]).contains(r#""lane":"alert""#));
    }

    #[test]
    fn batches_stay_within_the_agents_bounds() {
        let events = vec![vec![b'x'; 50_000]; 600];
        let sizes: Vec<_> = batches(&events).map(<[_]>::len).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 600);
        assert!(sizes.iter().all(|&n| n <= MAX_BATCH && n * 50_001 + 2 <= MAX_BODY_BYTES));
    }
}
