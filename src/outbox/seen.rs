//! What was read for publishing and is still there, so that its removal need not look it up again.
//!
//! # Invariants
//! - It names only what the store has under its key: noted when that was read, forgotten by the commit that
//!   removes it. One thread owns the outbox, and every removal goes through a [`Group`](super::Group).
//! - It is a help and no second index: empty after each opening, bounded, and what it does not name is looked up.

use std::collections::VecDeque;

use super::record::Position;
use crate::event::Lane;

/// Records of a lane that are remembered at most: what a forwarder holds, and a large window.
const MAX_SEEN: usize = 2048;

/// Number of parts and length of the frame of a record, as its first part says.
pub(super) type Header = (u8, usize);

/// By lane, in the order of their positions.
#[derive(Debug, Default)]
pub(super) struct Seen([VecDeque<(Position, Header)>; 3]);

impl Seen {
    /// A record was read. One that stands before another that was is looked up when it goes.
    pub(super) fn note(&mut self, lane: Lane, position: Position, header: Header) {
        let seen = &mut self.0[lane.index()];
        if seen.back().is_some_and(|(last, _)| *last >= position) {
            return;
        }
        if seen.len() >= MAX_SEEN {
            seen.pop_front();
        }
        seen.push_back((position, header));
    }

    /// The header of a record that is there; `None` says nothing.
    pub(super) fn get(&self, lane: Lane, position: Position) -> Option<Header> {
        let seen = &self.0[lane.index()];
        // Mostly the oldest go first.
        let at = match seen.front() {
            Some((first, _)) if *first == position => 0,
            _ => find(seen, position)?,
        };
        Some(seen[at].1)
    }

    /// A record is gone.
    pub(super) fn forget(&mut self, lane: Lane, position: Position) {
        let seen = &mut self.0[lane.index()];
        match seen.front() {
            Some((first, _)) if *first == position => drop(seen.pop_front()),
            _ => drop(find(seen, position).and_then(|at| seen.remove(at))),
        }
    }
}

fn find(seen: &VecDeque<(Position, Header)>, position: Position) -> Option<usize> {
    seen.binary_search_by_key(&position, |(at, _)| *at).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_and_what_was_never_read_is_not_known() {
        let mut seen = Seen::default();
        for position in [3, 4, 9] {
            seen.note(Lane::Status, Position(position), (1, 100 + position as usize));
        }
        seen.forget(Lane::Status, Position(4));
        seen.forget(Lane::Status, Position(5));
        let known = |lane| (0..12).filter(|p| seen.get(lane, Position(*p)).is_some()).collect();
        let (status, alert): (Vec<u64>, Vec<u64>) = (known(Lane::Status), known(Lane::Alert));
        assert_eq!((status, alert), (vec![3, 9], vec![]));
        assert_eq!(seen.get(Lane::Status, Position(9)), Some((1, 109)));
    }

    #[test]
    fn it_is_bounded_and_forgets_the_oldest_first() {
        let mut seen = Seen::default();
        let most = MAX_SEEN as u64;
        for position in 0..=most {
            seen.note(Lane::Alert, Position(position), (1, 1));
        }
        // Read once more from the beginning.
        seen.note(Lane::Alert, Position(0), (1, 1));
        assert_eq!(seen.get(Lane::Alert, Position(0)), None);
        assert!((1..=most).all(|position| seen.get(Lane::Alert, Position(position)).is_some()));
    }
}
