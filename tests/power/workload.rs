//! A run of the outbox that says what it was told: the process under test.
//!
//! The process notes in a file each group before its commit (`begin`) and once it is reported
//! accepted (`done`); what must be on the disk after a cut or a kill is read off these notes. Removals that are applied and
//! not waited for (`later`) count from the next `done` on.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use hark::clock::{Clock, ClockState, Rng, WallTime};
use hark::driver::sled_store::SledStore;
use hark::driver::{outbox_open, outbox_renew};
use hark::event::{Event, Lane, json};
use hark::outbox::{Outbox, PageLimit, Position, Record};

pub(crate) const ALL: PageLimit = PageLimit { records: 100_000, bytes: usize::MAX };
pub(crate) const NOW: WallTime = WallTime { unix_ms: 1_795_000_000_000, state: ClockState::Synced };
pub(crate) const NOTES: &str = "marks";
pub(crate) const OUTBOX: &str = "outbox";

/// An event whose bytes follow from its number and size.
pub(crate) fn event(number: u64, bytes: usize) -> Event {
    let mut data = String::new();
    let mut rng = Rng::from_seed(number);
    while data.len() < bytes {
        data.push_str(&format!("{:016x}", rng.u64()));
    }
    data.truncate(bytes);
    let text = format!(
        r#"{{"specversion":"1.0","id":"event-{number}","source":"/s","type":"t","data":"{data}"}}"#
    );
    json::parse(text.as_bytes()).unwrap()
}

/// One commit, as noted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Noted {
    /// Lane, number, bytes.
    pub(crate) appends: Vec<(Lane, u64, usize)>,
    pub(crate) removals: Vec<(Lane, Position)>,
}

fn lane(index: &str) -> Lane {
    Lane::ALL[index.parse::<usize>().unwrap()]
}

impl Noted {
    fn write(&self, word: &str) -> String {
        let mut text = word.to_owned();
        for (lane, number, bytes) in &self.appends {
            text.push_str(&format!(" +{}:{number}:{bytes}", lane.index()));
        }
        for (lane, position) in &self.removals {
            text.push_str(&format!(" -{}:{position}", lane.index()));
        }
        text + "\n"
    }

    fn read(line: &str) -> Self {
        let mut noted = Self::default();
        for word in line.split_whitespace().skip(1) {
            let fields: Vec<_> = word[1..].split(':').collect();
            if word.starts_with('+') {
                let (number, bytes) = (fields[1].parse().unwrap(), fields[2].parse().unwrap());
                noted.appends.push((lane(fields[0]), number, bytes));
            } else {
                noted.removals.push((lane(fields[0]), Position(fields[1].parse().unwrap())));
            }
        }
        noted
    }
}

/// A kill between two pages of one write leaves half a line, which is as good as not written.
fn whole_lines(notes: &str) -> &str {
    notes.rfind('\n').map_or("", |end| &notes[..=end])
}

/// What an opened outbox showed of what was open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) later: usize,
    pub(crate) unanswered: Option<bool>,
}

/// What the notes say must be there.
#[derive(Debug, Default)]
pub(crate) struct Promise {
    /// Number and bytes of each record that was accepted and not removed.
    pub(crate) kept: BTreeMap<(Lane, Position), (u64, usize)>,
    /// The last sequence (and position: there is one source) of each lane.
    pub(crate) last: [u64; 3],
    /// Removals that no answered group has followed: the first so many may have happened.
    pub(crate) later: Vec<Noted>,
    /// The group that was begun and not answered: all of it may be there, or nothing.
    pub(crate) unanswered: Option<Noted>,
    /// Groups that were answered.
    pub(crate) answered: usize,
}

impl Promise {
    pub(crate) fn read(notes: &str) -> Self {
        let mut promise = Self::default();
        for line in whole_lines(notes).lines() {
            match line {
                "done" => {
                    promise.settle(usize::MAX);
                    let noted = promise.unanswered.take().expect("done follows begin");
                    promise.apply(&noted);
                    promise.answered += 1;
                }
                // A process that was killed left its group unanswered; the next one settled it.
                "settled applied" => {
                    let noted = promise.unanswered.take().expect("settled follows begin");
                    promise.apply(&noted);
                }
                "settled absent" => promise.unanswered = None,
                line => match line.strip_prefix("settled later ") {
                    Some(count) => promise.settle(count.parse().unwrap()),
                    None if line.starts_with("later") => promise.later.push(Noted::read(line)),
                    None => promise.unanswered = Some(Noted::read(line)),
                },
            }
        }
        promise
    }

    /// The first `count` of the later groups have happened, and the others never will.
    fn settle(&mut self, count: usize) {
        for noted in std::mem::take(&mut self.later).iter().take(count) {
            self.apply(noted);
        }
    }

    fn apply(&mut self, noted: &Noted) {
        for &(lane, number, bytes) in &noted.appends {
            self.last[lane.index()] += 1;
            let position = Position(self.last[lane.index()]);
            self.kept.insert((lane, position), (number, bytes));
        }
        for record in &noted.removals {
            self.kept.remove(record);
        }
    }

    /// Holds an opened outbox against the promise and settles what is open: how many of the later groups happened, and
    /// whether the unanswered one is there. `Err` is a broken promise.
    pub(crate) fn check(&mut self, outbox: &Outbox<SledStore>) -> Result<Settled, String> {
        let mut stored = BTreeMap::new();
        for lane in Lane::ALL {
            for record in outbox.page(lane, None, ALL).map_err(|e| e.to_string())? {
                stored.insert((lane, record.position), record);
            }
        }
        let happened = |noted: &&Noted| !stored.contains_key(&noted.removals[0]);
        let (later, all) = (self.later.iter().take_while(happened).count(), self.later.len());
        self.settle(later);
        let unanswered = self.unanswered.take().map(|noted| {
            let applied = noted.appends.iter().any(|&(lane, number, _)| {
                stored.values().any(|r| r.lane == lane && r.event.id() == format!("event-{number}"))
            });
            // A group of removals only: it is applied if its first record is gone.
            let removed = noted.appends.is_empty()
                && noted.removals.first().is_some_and(|record| !stored.contains_key(record));
            if applied || removed {
                self.apply(&noted);
            }
            applied || removed
        });
        if unanswered == Some(true) && later < all {
            return Err("a group is there without the removals before it".to_owned());
        }
        for (record, (number, bytes)) in &self.kept {
            let Some(found) = stored.remove(record) else {
                return Err(format!("accepted event {number} at {record:?} is gone"));
            };
            same_bytes(&found, *number, *bytes)?;
        }
        if let Some(record) = stored.keys().next() {
            return Err(format!("{record:?} was removed and is back, or never accepted"));
        }
        let depth = Lane::ALL.map(|lane| self.kept.keys().filter(|k| k.0 == lane).count() as u64);
        if outbox.depth() != depth {
            return Err(format!("depth is {:?} and should be {depth:?}", outbox.depth()));
        }
        Ok(Settled { later, unanswered })
    }

    /// Appends to each lane: the sequence goes on without a gap.
    pub(crate) fn check_next(&self, outbox: &mut Outbox<SledStore>) -> Result<(), String> {
        for lane in Lane::ALL {
            let next = outbox.append(&[(lane, event(u64::MAX, 10))], NOW);
            let next = next.map_err(|e| e.to_string())?[0].sequence;
            if next != self.last[lane.index()] + 1 {
                return Err(format!("{lane} goes on at {next} after {}", self.last[lane.index()]));
            }
        }
        Ok(())
    }
}

fn same_bytes(found: &Record, number: u64, bytes: usize) -> Result<(), String> {
    let mut expected = event(number, bytes);
    expected.set_extension("lane", found.lane.as_str().into()).unwrap();
    let sequence = hark::outbox::sequence_text(found.position.0);
    expected.set_extension("sequence", sequence.into()).unwrap();
    if json::to_vec(&found.event) == json::to_vec(&expected) {
        return Ok(());
    }
    Err(format!("event {number} came back as {:?}", found.event))
}

/// What a run does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) commits: usize,
    /// Commits of more than one of sled's segments, rather than of a few small events.
    pub(crate) large: bool,
    /// A fresh store every so many commits.
    pub(crate) renew_every: Option<usize>,
}

/// Opens the outbox below `root` as the agent does; that anything had to be salvaged is a broken promise.
pub(crate) fn open(root: &Path) -> Result<Outbox<SledStore>, String> {
    let clock = Clock::new(|| ClockState::Synced);
    let outbox = outbox_open::open(&root.join(OUTBOX), clock).map_err(|e| format!("open: {e}"))?;
    match outbox.untold() {
        None => Ok(outbox),
        Some(told) => Err(format!("open: it was salvaged: {told:?}")),
    }
}

/// Opens the outbox in `root`, settles what a killed run left, and commits as planned, taking
/// notes; returns it open.
pub(crate) fn run(root: &Path, plan: Plan) -> Outbox<SledStore> {
    let notes = std::fs::read_to_string(root.join(NOTES)).unwrap_or_default();
    let mut promise = Promise::read(&notes);
    let mut file =
        std::fs::File::options().create(true).append(true).open(root.join(NOTES)).unwrap();
    let whole = whole_lines(&notes).len();
    if whole < notes.len() {
        file.set_len(whole as u64).unwrap();
    }
    let mut outbox = open(root).unwrap();
    let mut note = |text: &str| file.write_all(text.as_bytes()).unwrap();
    let settled = promise.check(&outbox).unwrap();
    note(&format!("settled later {}\n", settled.later));
    match settled.unanswered {
        Some(true) => note("settled applied\n"),
        Some(false) => note("settled absent\n"),
        None => {}
    }
    let mut rng = Rng::from_seed(plan.seed);
    for commit in 0..plan.commits {
        let first = plan.seed * 1_000_000 + commit as u64 * 1000;
        let noted = match commit % BACKLOG_EVERY {
            BACKLOG_AT if !plan.large => plan_backlog(&mut rng, first),
            _ => plan_commit(&mut rng, &promise, first, plan.large),
        };
        note(&noted.write("begin"));
        let mut group = outbox.begin(NOW).unwrap();
        let events: Vec<_> =
            noted.appends.iter().map(|&(lane, n, bytes)| (lane, event(n, bytes))).collect();
        group.append(&events).unwrap();
        group.remove(&noted.removals).unwrap();
        group.commit().unwrap();
        note("done\n");
        promise.apply(&noted);
        let later = plan_removal(&mut rng, &promise);
        if !later.removals.is_empty() {
            note(&later.write("later"));
            let mut group = outbox.begin(NOW).unwrap();
            group.remove(&later.removals).unwrap();
            group.apply().unwrap();
            promise.apply(&later);
        }
        if plan.renew_every.is_some_and(|every| commit % every == every - 1) {
            let renewed = outbox_renew::renew(outbox, Clock::new(|| ClockState::Synced)).unwrap();
            assert_eq!(renewed.abandoned, None);
            outbox = renewed.outbox;
        }
    }
    outbox
}

/// Now and then so many events come at once, and go at once, that their lane's head is moved and nothing is deleted.
const BACKLOG: usize = 160;
const DRAINED: usize = 130;
const BACKLOG_EVERY: usize = 20;
const BACKLOG_AT: usize = 5;

fn plan_backlog(rng: &mut Rng, first: u64) -> Noted {
    let lane = Lane::ALL[(rng.u64() % 3) as usize];
    let appends = (0..BACKLOG as u64).map(|i| (lane, first + i, 20 + (rng.u64() % 400) as usize));
    Noted { appends: appends.collect(), removals: Vec::new() }
}

fn plan_commit(rng: &mut Rng, promise: &Promise, first: u64, large: bool) -> Noted {
    let (count, smallest, spread) =
        if large { (9 + rng.u64() % 7, 40_000, 24_000) } else { (1 + rng.u64() % 3, 50, 1500) };
    let appends = (0..count)
        .map(|i| {
            let lane = Lane::ALL[(rng.u64() % 3) as usize];
            (lane, first + i, smallest + (rng.u64() % spread) as usize)
        })
        .collect();
    // A backlog gathers up to some fifty records and is then drained, so that segments are reused.
    let drain = promise.kept.len() as u64 > 20 + rng.u64() % 30;
    let want = if drain { 20 } else { rng.u64() % 3 };
    let removals = promise.kept.keys().take(want as usize).copied().collect();
    Noted { appends, removals }
}

/// Now and then a few removals that are not waited for, and many where there is a backlog.
fn plan_removal(rng: &mut Rng, promise: &Promise) -> Noted {
    for lane in Lane::ALL {
        let of_lane = promise.kept.keys().filter(|(l, _)| *l == lane);
        let removals: Vec<_> = of_lane.take(DRAINED).copied().collect();
        if removals.len() == DRAINED {
            return Noted { appends: Vec::new(), removals };
        }
    }
    let want = if rng.u64().is_multiple_of(3) { rng.u64() % 6 } else { 0 };
    let removals = promise.kept.keys().take(want as usize).copied().collect();
    Noted { appends: Vec::new(), removals }
}
