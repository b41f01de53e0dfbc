//! Reading: puts the parts of consecutive records together, and passes over what is damaged.

use super::codec::CodecError;
use super::keys::{self, Joining};
use super::record::{PageLimit, Position, Record, Structured};
use super::seen::Header;
use crate::event::Lane;

/// A record that cannot be read: its bytes are not the ones that were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Where it stands in its lane.
    pub position: Position,
    /// What is wrong with it.
    pub cause: String,
}

/// What [`Outbox::read`](super::Outbox::read) found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T = Record> {
    /// The sound records, oldest first.
    pub records: Vec<T>,
    /// Those between them that cannot be read; bounded as the records are.
    pub damaged: Vec<Damage>,
    /// One for each of the records.
    pub(super) headers: Vec<Header>,
}

impl<T> Default for Page<T> {
    fn default() -> Self {
        Self { records: Vec::new(), damaged: Vec::new(), headers: Vec::new() }
    }
}

/// Makes a record of its frame.
pub(super) type Decode<'a, T> = &'a dyn Fn(&[u8]) -> Result<T, CodecError>;

/// Where a record says that it stands.
pub trait Placed {
    /// Lane and position.
    fn place(&self) -> (Lane, Position);
}

impl Placed for Record {
    fn place(&self) -> (Lane, Position) {
        (self.lane, self.position)
    }
}

impl Placed for Structured {
    fn place(&self) -> (Lane, Position) {
        (self.lane, self.position)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    Yes,
    No,
}

/// Takes the pairs of a lane in their order.
pub(super) struct PageBuilder<'a, T> {
    lane: Lane,
    limit: PageLimit,
    decode: Decode<'a, T>,
    page: Page<T>,
    bytes: usize,
    /// The record whose parts are being read: `None` inside once it is known to be damaged.
    current: Option<(Position, Option<Joining>)>,
}

impl<'a, T: Placed> PageBuilder<'a, T> {
    pub(super) fn new(lane: Lane, limit: PageLimit, decode: Decode<'a, T>) -> Self {
        Self { lane, limit, decode, page: Page::default(), bytes: 0, current: None }
    }

    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) -> Full {
        // A key of another form is none of ours: the keys are sled's own, behind its checksums.
        let Some((position, part)) = keys::parse_part(key) else { return Full::No };
        match self.current.take() {
            Some((current, joining)) if current == position => {
                // Of a damaged record the remaining parts are passed over.
                let Some(mut joining) = joining else {
                    self.current = Some((position, None));
                    return Full::No;
                };
                if !joining.push(part, value) {
                    self.damaged(position, "its parts do not belong together");
                    return Full::No;
                }
                return self.advance(position, joining);
            }
            Some((earlier, Some(_))) => {
                self.damaged(earlier, "a part is missing");
                self.current = None;
            }
            _ => {}
        }
        if self.is_full() {
            return Full::Yes;
        }
        // Most records are of one part, which need not be copied to be read.
        if let Some(frame) = (part == 0).then(|| keys::only_part(value)).flatten() {
            return self.take(position, 1, frame);
        }
        match (part == 0).then(|| Joining::begin(value)).flatten() {
            Some(joining) => self.advance(position, joining),
            None => {
                self.damaged(position, "its first part is missing or has no header");
                Full::No
            }
        }
    }

    fn advance(&mut self, position: Position, joining: Joining) -> Full {
        if !joining.is_complete() {
            self.current = Some((position, Some(joining)));
            return Full::No;
        }
        let parts = joining.parts();
        let Some(frame) = joining.finish() else {
            self.damaged(position, "its length is wrong");
            return Full::No;
        };
        self.take(position, parts, &frame)
    }

    /// A record's whole frame.
    fn take(&mut self, position: Position, parts: u8, frame: &[u8]) -> Full {
        if !self.page.records.is_empty() && self.bytes + frame.len() > self.limit.bytes {
            return Full::Yes;
        }
        match (self.decode)(frame) {
            Ok(record) if record.place() == (self.lane, position) => {
                self.bytes += frame.len();
                self.page.records.push(record);
                self.page.headers.push((parts, frame.len()));
                self.current = Some((position, None));
            }
            Ok(_) => self.damaged(position, "it is the record of another place"),
            Err(error) => self.damaged(position, &error.to_string()),
        }
        if self.is_full() { Full::Yes } else { Full::No }
    }

    /// How many there are so far.
    pub(super) fn records(&self) -> usize {
        self.page.records.len()
    }

    fn is_full(&self) -> bool {
        self.page.records.len() + self.page.damaged.len() >= self.limit.records
    }

    fn damaged(&mut self, position: Position, cause: &str) {
        self.page.damaged.push(Damage { position, cause: cause.to_owned() });
        self.current = Some((position, None));
    }

    pub(super) fn finish(mut self, is_end: bool) -> Page<T> {
        if let (true, Some((begun, Some(_)))) = (is_end, self.current.take()) {
            self.damaged(begun, "a part is missing");
        }
        self.page
    }
}
