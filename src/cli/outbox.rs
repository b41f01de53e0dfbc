//! `hark outbox`: the queue, through the running agent or from its files.
//!
//! Where an agent listens on `[ingest] socket`, it is asked. Else the files are looked at without being
//! changed; `requeue` and `purge` open them, and refuse while another process has them open.

mod print;
mod source;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use super::{Failure, config, exit};
use crate::agent::end_signals;
use crate::driver::outbox_admin::{Destroy, Entry, Query, Requeue, State};
use crate::event::Lane;
use source::{Aim, Source};

/// Look at what waits in the outbox, put dead letters back, destroy
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", default_value = "/etc/hark/hark.toml", global = true)]
    config: PathBuf,
    /// Print JSON: one object, or one a line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// How much there is
    Stats,
    /// One line an event: what waits, in the order of delivery, then dead letters with their reason
    List(Filter),
    /// One event with all of its attributes and its data
    Show {
        /// Its attribute `id`
        id: String,
    },
    /// Print the events as CloudEvents in JSON, one a line, as `hark emit` takes them
    Export(Filter),
    /// Put dead letters back into their lane, to be offered to the broker again
    Requeue {
        /// Of the dead letter
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        id: Option<String>,
        /// All dead letters
        #[arg(long)]
        all: bool,
    },
    /// Destroy events; an event tells of it
    #[command(group = clap::ArgGroup::new("what").args(["dead", "lane"]).required(true).multiple(true))]
    Purge {
        /// Dead letters; alerts among them only with `--lane alert`
        #[arg(long)]
        dead: bool,
        /// In this lane; may be given several times. Without `--dead`: all that waits there
        #[arg(long)]
        lane: Vec<Lane>,
        /// Really
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Filter {
    /// Of this lane only
    #[arg(long)]
    lane: Option<Lane>,
    /// Dead letters only
    #[arg(long)]
    dead: bool,
    /// So many at most
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// # Errors
/// 64: no event has that id, or words are missing. 69: the agent does not answer. 74: the files cannot be
/// read, or another process has them open. 78: the configuration is missing or wrong.
pub(super) async fn run(args: &Args, out: impl Write) -> Result<(), Failure> {
    let loaded = config::load(&args.config)?;
    let aim = match args.action {
        Action::Requeue { .. } | Action::Purge { yes: true, .. } => Aim::Change,
        _ => Aim::Look,
    };
    let mut out = Output { out: BufWriter::new(out), closed: false };
    let [mut terminate, mut interrupt, mut hangup] = end_signals()?;
    let ended = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    };
    let work = async {
        let mut source = Source::find(&loaded.config, aim).await?;
        act(args, &mut source, &mut out).await
    };
    // What was copied is removed on the way out, so that no signal may end the process while there is a copy.
    tokio::select! {
        biased;
        () = ended => return Err(Failure::new(exit::UNAVAILABLE, "interrupted")),
        done = work => done?,
    }
    out.flush()
}

async fn act(
    args: &Args,
    source: &mut Source,
    out: &mut Output<impl Write>,
) -> Result<(), Failure> {
    match &args.action {
        Action::Stats => {
            let stats = source.stats().await?;
            out.write(&match args.json {
                true => print::stats_json(&stats, source.name()),
                false => print::stats(&stats, source.name()),
            })
        }
        Action::List(filter) => {
            let mut table = print::Table::default();
            each_page(source, filter, false, |entries| {
                let text = match args.json {
                    true => entries.iter().map(print::json).collect(),
                    false => table.rows(&entries),
                };
                out.write(&text)?;
                Ok(!out.closed)
            })
            .await
        }
        Action::Export(filter) => {
            let mut left_out = LeftOut::default();
            each_page(source, filter, true, |entries| {
                out.write(&left_out.lines(&entries))?;
                Ok(!out.closed)
            })
            .await?;
            out.flush()?;
            left_out.told()
        }
        Action::Show { id } => {
            let entries = named(source, id).await?;
            for entry in &entries {
                let text = if args.json { print::with_event(entry) } else { print::entry(entry) };
                out.write(&text)?;
            }
            Ok(())
        }
        Action::Requeue { id, .. } => requeue(id.as_deref(), args.json, source, out).await,
        Action::Purge { dead, lane, yes } => {
            let mut lanes = lane.clone();
            lanes.sort();
            lanes.dedup();
            if lanes.is_empty() {
                lanes = vec![Lane::Status, Lane::Telemetry];
            }
            purge(Destroy { dead: *dead, lanes }, *yes, args.json, source, out).await
        }
    }
}

/// Events that an export could not write.
#[derive(Debug, Default)]
struct LeftOut {
    count: u64,
    /// The id of the first.
    first: String,
}

impl LeftOut {
    /// The entries as they are exported, a line each; counts those that cannot be.
    fn lines(&mut self, entries: &[Entry]) -> String {
        let mut lines = String::new();
        for entry in entries {
            match print::event(entry) {
                Some(line) => lines.push_str(&line),
                None => {
                    if self.count == 0 {
                        self.first.clone_from(&entry.id);
                    }
                    self.count += 1;
                }
            }
        }
        lines
    }

    /// # Errors
    /// 74: something was left out.
    fn told(self) -> Result<(), Failure> {
        let Self { count, first } = self;
        if count == 0 {
            return Ok(());
        }
        let events = print::count(count, "event");
        let message = format!(
            "{events} left out (the first: `{first}`), since what came of them is no CloudEvent; all others \
             are exported: `hark outbox list` shows them"
        );
        Err(Failure::new(exit::IO, message))
    }
}

/// Hands over all entries, a page at a time, while `take` wants more.
async fn each_page(
    source: &mut Source,
    filter: &Filter,
    events: bool,
    mut take: impl FnMut(Vec<Entry>) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let mut left = filter.limit.unwrap_or(usize::MAX);
    let mut query = Query { lane: filter.lane, dead: filter.dead, events, ..Query::default() };
    while left > 0 {
        query.limit = left;
        let page = source.page(&query).await?;
        left -= page.entries.len().min(left);
        if !take(page.entries)? || page.next.is_none() {
            break;
        }
        query.after = page.next;
    }
    Ok(())
}

/// All events with this `id`: there may be one of each source.
async fn named(source: &mut Source, id: &str) -> Result<Vec<Entry>, Failure> {
    let mut query = Query { id: Some(id.to_owned()), events: true, ..Query::default() };
    let mut found = Vec::new();
    loop {
        let page = source.page(&query).await?;
        found.extend(page.entries);
        query.after = page.next;
        if query.after.is_none() {
            break;
        }
    }
    if found.is_empty() {
        let message = format!(
            "no event `{id}` is in the outbox: it was delivered, or never accepted; `hark outbox list` shows all"
        );
        return Err(Failure::new(exit::USAGE, message));
    }
    Ok(found)
}

async fn requeue(
    id: Option<&str>,
    json: bool,
    source: &mut Source,
    out: &mut Output<impl Write>,
) -> Result<(), Failure> {
    let what = id.map_or(Requeue::All, |id| Requeue::Id(id.to_owned()));
    let done = source.requeue(&what).await?;
    if let (0, Some(id)) = (done, id) {
        let found = named(source, id).await?;
        let state = found.first().map_or(State::Waiting, |entry| entry.state);
        let message =
            format!("event `{id}` is no dead letter ({state}): there is nothing to put back");
        return Err(Failure::new(exit::USAGE, message));
    }
    out.write(&match json {
        true => format!("{{\"requeued\":{done}}}\n"),
        false => format!("{} put back\n", print::count(done as u64, "dead letter")),
    })
}

async fn purge(
    what: Destroy,
    yes: bool,
    json: bool,
    source: &mut Source,
    out: &mut Output<impl Write>,
) -> Result<(), Failure> {
    if !yes {
        let stats = source.stats().await?;
        let counts = |lane: &Lane| match what.dead {
            true => (stats.lanes[lane.index()].dead_letters, "dead letter"),
            false => (stats.lanes[lane.index()].waiting, "event"),
        };
        let parts = what.lanes.iter().map(|lane| {
            let (number, name) = counts(lane);
            format!("{} of lane {lane}", print::count(number, name))
        });
        let parts = parts.collect::<Vec<_>>().join(" and ");
        let message = format!("this would destroy {parts} for good: say so with --yes");
        return Err(Failure::new(exit::USAGE, message));
    }
    let gone = source.purge(&what).await?;
    let total: u64 = gone.iter().sum();
    let by_lane = Lane::ALL.map(|lane| format!("\"{lane}\":{}", gone[lane.index()])).join(",");
    out.write(&match json {
        true => format!("{{\"purged\":{total},\"lanes\":{{{by_lane}}}}}\n"),
        false => format!("{} destroyed\n", print::count(total, "event")),
    })
}

/// Standard output, which may be closed early, as by `head`.
struct Output<W: Write> {
    out: BufWriter<W>,
    closed: bool,
}

impl<W: Write> Output<W> {
    fn write(&mut self, text: &str) -> Result<(), Failure> {
        let result = self.out.write_all(text.as_bytes());
        self.settle(result)
    }

    fn flush(&mut self) -> Result<(), Failure> {
        let result = self.out.flush();
        self.settle(result)
    }

    fn settle(&mut self, result: io::Result<()>) -> Result<(), Failure> {
        match result {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.closed = true,
            result => result
                .map_err(|e| Failure::new(exit::IO, format!("write to standard output: {e}")))?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_export_leaves_out_is_counted_and_told() {
        let entry = |id: &str, event: serde_json::Value| {
            let entry = serde_json::json!({
                "id": id, "source": "/s", "type": "t", "lane": "alert", "position": 1, "sequence": "1",
                "time": null, "accepted": "", "bytes": 1, "state": "waiting", "event": event,
            });
            serde_json::from_str::<Entry>(&entry.to_string()).unwrap()
        };
        let sound = |id: &str| serde_json::json!({ "specversion": "1.0", "id": id, "source": "/s", "type": "t" });
        let mut left_out = LeftOut::default();
        let lines = left_out.lines(&[entry("a", sound("a")), entry("b", sound("b"))]);
        assert_eq!(lines.lines().count(), 2);
        assert!(LeftOut::default().told().is_ok());
        let lines = left_out.lines(&[entry("c", "no event".into()), entry("d", sound("d"))]);
        assert_eq!(lines.lines().count(), 1);
        left_out.lines(&[entry("e", serde_json::Value::Null)]);
        let failure = left_out.told().unwrap_err().to_string();
        assert!(failure.contains("2 events") && failure.contains("`c`"), "{failure}");
    }
}
