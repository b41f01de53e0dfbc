//! What is usual: for each hour of the week the longest silences of the last weeks.
//!
//! Minutes and not probabilities, so that a person can read and check them. What is usual in an hour is the greater of
//! two: the 0.9 quantile of this hour of the week, which knows that Sundays are different, and the
//! 0.975 quantile of this hour on all days, which has seven times as many to learn from. Both are quantiles
//! and not the greatest, so that one long Sunday out does not loosen all Sundays of three months.
//!
//! The figures in `docs/inactivity.md` were the reason for these quantiles, and for what is added.

use std::collections::VecDeque;
use std::time::Duration;

/// Hours of a week.
pub(super) const HOURS: usize = 168;
/// Weeks that are remembered.
pub(super) const WEEKS: usize = 12;
/// Added to every limit, minutes.
pub(super) const PAD_MIN: f64 = 60.0;
const OWN_QUANTILE: f64 = 0.9;
const DAILY_QUANTILE: f64 = 0.975;

/// Longest silences in minutes, the newest last, by hour of the week.
#[derive(Debug, Clone)]
pub(super) struct Rhythm(Vec<VecDeque<u16>>);

impl Rhythm {
    /// From as many cells as there are hours; whatever else, nothing is learned yet.
    pub(super) fn from(cells: Vec<Vec<u16>>) -> Self {
        let mut rhythm = Self(cells.into_iter().map(VecDeque::from).collect());
        rhythm.0.resize(HOURS, VecDeque::new());
        rhythm
    }

    pub(super) fn cells(&self) -> Vec<Vec<u16>> {
        self.0.iter().map(|cell| cell.iter().copied().collect()).collect()
    }

    /// Hours that were learned and are remembered.
    pub(super) fn hours(&self) -> u32 {
        u32::try_from(self.0.iter().map(VecDeque::len).sum::<usize>()).unwrap_or(u32::MAX)
    }

    pub(super) fn learn(&mut self, hour: usize, longest: Duration) {
        let cell = &mut self.0[hour % HOURS];
        if cell.len() == WEEKS {
            cell.pop_front();
        }
        cell.push_back(u16::try_from(longest.as_secs() / 60).unwrap_or(u16::MAX));
    }

    /// How long a silence usually is at most, in minutes; `None` where nothing is known of this
    /// hour of the day.
    pub(super) fn usual(&self, hour: usize) -> Option<u16> {
        let daily = (0..7).flat_map(|day| &self.0[day * 24 + hour % 24]).copied();
        let daily = quantile(daily, DAILY_QUANTILE)?;
        let own = quantile(self.0[hour % HOURS].iter().copied(), OWN_QUANTILE);
        Some(own.map_or(daily, |own| own.max(daily)))
    }
}

/// Of so many values the greatest is an exception, whatever the quantile.
const ENOUGH: usize = 4;

/// The smallest value that at least this share of all does not exceed; of [`ENOUGH`] values not the
/// greatest, else one accident would be usual for as long as there are few values.
fn quantile(values: impl Iterator<Item = u16>, share: f64) -> Option<u16> {
    let mut values: Vec<u16> = values.collect();
    values.sort_unstable();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "at most 84 values"
    )]
    let place = (values.len() as f64 * share).ceil() as usize;
    let most = if values.len() < ENOUGH { values.len() } else { values.len() - 1 };
    values.get(place.min(most).saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_exception_in_three_months_does_not_make_an_hour_usual() {
        let mut rhythm = Rhythm::from(Vec::new());
        for week in 0..WEEKS {
            for hour in 0..HOURS {
                let exception = week == 3 && hour == 100;
                let minutes = if exception { 600 } else { 30 };
                rhythm.learn(hour, Duration::from_secs(minutes * 60));
            }
        }
        assert_eq!(rhythm.usual(100), Some(30));
        assert_eq!(rhythm.hours(), (HOURS * WEEKS) as u32);
    }

    #[test]
    fn every_sunday_is_usual_on_sundays_only_and_the_oldest_week_is_forgotten() {
        let mut rhythm = Rhythm::from(Vec::new());
        let sunday_ten = 6 * 24 + 10;
        for _ in 0..WEEKS {
            (0..HOURS).for_each(|hour| {
                let minutes = if hour == sunday_ten { 300 } else { 20 };
                rhythm.learn(hour, Duration::from_secs(minutes * 60));
            });
        }
        assert_eq!(rhythm.usual(sunday_ten), Some(300));
        assert_eq!(rhythm.usual(10), Some(300), "a seventh of all days at ten");
        assert_eq!(rhythm.usual(sunday_ten + 1), Some(20));
        for _ in 0..WEEKS {
            rhythm.learn(sunday_ten, Duration::from_secs(1200));
        }
        assert_eq!(rhythm.usual(sunday_ten), Some(20));
    }

    #[test]
    fn quantiles_are_those_of_the_definition() {
        assert_eq!(quantile([].into_iter(), 0.9), None);
        assert_eq!(quantile([7].into_iter(), 0.9), Some(7));
        assert_eq!(quantile(1..=10, 0.9), Some(9));
        assert_eq!(quantile(1..=20, 0.95), Some(19));
        assert_eq!((quantile(1..=3, 0.95), quantile(1..=4, 0.95)), (Some(3), Some(3)));
    }
}
