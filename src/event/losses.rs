//! What was lost, in the form in which an event tells it: counts by lane and ranges of sequences.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Lane;

/// Ranges that one event tells at most; beyond them only the counts are complete.
pub const MAX_RANGES: usize = 64;

/// Consecutive sequences of one source in one lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceRange {
    /// The attribute `source` of the events.
    pub source: String,
    /// The lane's place in [`Lane::ALL`].
    pub lane: u8,
    /// The first that is gone.
    pub from: u64,
    /// The last that is gone.
    pub to: u64,
}

/// Events that are gone. Counts are exact as far as the outbox knows; ranges may hold sequences
/// that were delivered before, never fewer than what is known to be gone, unless `more_ranges`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// By lane. Index: [`Lane::index`].
    pub counts: [u64; 3],
    /// At most [`MAX_RANGES`].
    pub ranges: Vec<SequenceRange>,
    /// Whether there are ranges that found no place.
    pub more_ranges: bool,
}

impl Losses {
    /// Whether nothing is gone.
    pub fn is_empty(&self) -> bool {
        self.counts == [0; 3]
    }

    /// Events that are gone, in all lanes.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Adds one event.
    pub fn add(&mut self, lane: Lane, source: &str, sequence: u64) {
        self.counts[lane.index()] += 1;
        self.add_range(lane, source, sequence, sequence);
    }

    /// Adds events of which only the number is known.
    pub fn add_count(&mut self, lane: Lane, count: u64) {
        let known = &mut self.counts[lane.index()];
        *known = known.saturating_add(count);
    }

    /// Adds sequences; the count is told apart.
    pub fn add_range(&mut self, lane: Lane, source: &str, from: u64, to: u64) {
        let lane = u8::try_from(lane.index()).unwrap_or(u8::MAX);
        let before = self.ranges.iter().rposition(|range| {
            range.lane == lane && range.to.checked_add(1) == Some(from) && range.source == source
        });
        match before {
            Some(place) => self.ranges[place].to = to,
            None if self.ranges.len() < MAX_RANGES => {
                self.ranges.push(SequenceRange { source: source.to_owned(), lane, from, to });
            }
            None => self.more_ranges = true,
        }
    }

    /// Adds what another one tells.
    pub fn merge(&mut self, other: &Self) {
        for lane in Lane::ALL {
            self.add_count(lane, other.counts[lane.index()]);
        }
        for range in &other.ranges {
            if let Some(lane) = Lane::ALL.get(usize::from(range.lane)) {
                self.add_range(*lane, &range.source, range.from, range.to);
            }
        }
        self.more_ranges |= other.more_ranges;
    }

    /// The members of an event's data.
    pub(super) fn describe(&self, cause: &str) -> Value {
        let lanes: serde_json::Map<_, _> = Lane::ALL
            .map(|lane| (lane.to_string(), self.counts[lane.index()].into()))
            .into_iter()
            .collect();
        let ranges: Vec<_> = self.ranges.iter().filter_map(|range| {
            let lane = Lane::ALL.get(usize::from(range.lane))?.as_str();
            Some(json!({ "source": range.source, "lane": lane, "from": range.from, "to": range.to }))
        }).collect();
        json!({
            "cause": cause,
            "count": self.total(),
            "lanes": lanes,
            "ranges": ranges,
            "more_ranges": self.more_ranges,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_sequences_become_one_range_and_ranges_are_bounded() {
        let mut losses = Losses::default();
        for sequence in [1, 2, 3, 7, 8] {
            losses.add(Lane::Telemetry, "/a", sequence);
            losses.add(Lane::Telemetry, "/b", sequence);
        }
        let found: Vec<_> =
            losses.ranges.iter().map(|r| (r.source.as_str(), r.from, r.to)).collect();
        assert_eq!(found, [("/a", 1, 3), ("/b", 1, 3), ("/a", 7, 8), ("/b", 7, 8)]);
        for sequence in 0..1000 {
            losses.add(Lane::Status, "/c", sequence * 2);
        }
        assert_eq!((losses.ranges.len(), losses.more_ranges), (MAX_RANGES, true));
        assert_eq!(losses.counts, [0, 1000, 10]);
    }
}
