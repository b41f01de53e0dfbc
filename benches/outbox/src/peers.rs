//! The stores that are compared. Each keeps the same bytes under the same promise: what `commit`
//! was given is on stable storage when it returns.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use hark::driver::sled_store::SledStore;
use hark::event::Lane;
use hark::outbox::{Outbox, Position};
use redb::TableDefinition;

use crate::{NOW, event, payload};

/// A store of events, oldest first.
pub(crate) trait Peer {
    /// Adds the events with these numbers and removes those, in one commit.
    fn commit(&mut self, added: Range<u64>, removed: Range<u64>);
}

/// The outbox as the agent runs it, frames, counters, checksums and marks included.
pub(crate) struct Hark {
    outbox: Outbox<SledStore>,
    positions: std::collections::VecDeque<Position>,
}

impl Hark {
    pub(crate) fn open(path: &Path) -> Self {
        let store = SledStore::open(path).expect("the store opens");
        let outbox = Outbox::open(store).expect("the outbox opens");
        Self { outbox, positions: std::collections::VecDeque::new() }
    }
}

impl Peer for Hark {
    fn commit(&mut self, added: Range<u64>, removed: Range<u64>) {
        let mut group = self.outbox.begin(NOW).expect("begin");
        let events: Vec<_> = added.map(|number| (Lane::Telemetry, event(number))).collect();
        group.append(&events).expect("append");
        let gone: Vec<_> = removed
            .map(|_| (Lane::Telemetry, self.positions.pop_front().expect("it waits")))
            .collect();
        group.remove(&gone).expect("remove");
        let accepted = group.commit().expect("commit");
        self.positions.extend(accepted.into_iter().map(|accepted| accepted.position));
    }
}

pub(crate) struct Sqlite(rusqlite::Connection);

impl Sqlite {
    pub(crate) fn open(path: &Path) -> Self {
        fs::create_dir_all(path).expect("a directory");
        let connection = rusqlite::Connection::open(path.join("db")).expect("it opens");
        connection
            .execute_batch(
                "pragma journal_mode = wal; pragma synchronous = full;
                 create table event (id integer primary key, body blob)",
            )
            .expect("a table");
        Self(connection)
    }
}

impl Peer for Sqlite {
    fn commit(&mut self, added: Range<u64>, removed: Range<u64>) {
        let transaction = self.0.transaction().expect("begin");
        {
            let mut insert =
                transaction.prepare_cached("insert into event values (?1, ?2)").expect("sql");
            for number in added {
                insert.execute((number as i64, payload(number).into_bytes())).expect("insert");
            }
            let mut delete =
                transaction.prepare_cached("delete from event where id = ?1").expect("sql");
            for number in removed {
                delete.execute((number as i64,)).expect("delete");
            }
        }
        transaction.commit().expect("commit");
    }
}

pub(crate) struct Redb(redb::Database);

const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("event");

impl Redb {
    pub(crate) fn open(path: &Path) -> Self {
        fs::create_dir_all(path).expect("a directory");
        Self(redb::Database::create(path.join("db")).expect("it opens"))
    }
}

impl Peer for Redb {
    fn commit(&mut self, added: Range<u64>, removed: Range<u64>) {
        let transaction = self.0.begin_write().expect("begin");
        {
            let mut table = transaction.open_table(EVENTS).expect("a table");
            for number in added {
                table.insert(number, payload(number).as_bytes()).expect("insert");
            }
            for number in removed {
                table.remove(number).expect("remove");
            }
        }
        transaction.commit().expect("commit");
    }
}

/// The floor: one file, one write and one `fdatasync` a commit; removals are 16-byte notes. It never
/// cleans up and cannot be read again.
pub(crate) struct Log {
    file: File,
    end: u64,
}

impl Log {
    pub(crate) fn open(path: &Path) -> Self {
        fs::create_dir_all(path).expect("a directory");
        Self { file: File::create(path.join("log")).expect("a file"), end: 0 }
    }
}

impl Peer for Log {
    fn commit(&mut self, added: Range<u64>, removed: Range<u64>) {
        let mut bytes = Vec::new();
        for number in added {
            let body = payload(number);
            bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
            bytes.extend_from_slice(&number.to_le_bytes());
            bytes.extend_from_slice(body.as_bytes());
        }
        for number in removed {
            bytes.extend_from_slice(&0_u64.to_le_bytes());
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        self.file.write_all_at(&bytes, self.end).expect("written");
        self.file.sync_data().expect("synced");
        self.end += bytes.len() as u64;
    }
}
