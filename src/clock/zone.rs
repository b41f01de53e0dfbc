//! Local time: what the clock on the wall of the home shows.

use tz::timezone::{TimeZone, TimeZoneSettings};

/// The time zone of the home.
#[derive(Debug, Clone, PartialEq)]
pub struct Zone(TimeZone);

/// A moment as the home's wall clock shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// Days since Thursday, 1970-01-01.
    day: i64,
    /// Minutes since midnight.
    minute: u16,
}

/// In the order of the week.
const WEEKDAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

impl Zone {
    /// UTC, where nothing else is known.
    pub fn utc() -> Self {
        Self(TimeZone::utc())
    }

    /// What a file of the time zone database says (TZif, RFC 8536).
    ///
    /// # Errors
    /// It is no such file.
    pub fn from_file(bytes: &[u8]) -> Result<Self, String> {
        TimeZone::from_tz_data(bytes).map(Self).map_err(|e| e.to_string())
    }

    /// A rule in the form of POSIX: `CET-1CEST,M3.5.0,M10.5.0/3`.
    ///
    /// # Errors
    /// It is no such rule.
    pub fn from_rule(rule: &str) -> Result<Self, String> {
        // No directory and no file: this reads the rule and nothing else.
        let settings = TimeZoneSettings::new(&[], |_| Err("files are not read here".into()));
        settings.parse_posix_tz(rule).map(Self).map_err(|e| e.to_string())
    }

    /// The moment at which the local clock shows so many minutes after the midnight of a day, in days
    /// since 1970. Where the clocks are set, an hour that there is twice is the later one east of Greenwich and
    /// the earlier one west of it; one that there is not is likewise the hour behind it or before it.
    #[allow(clippy::cast_possible_truncation, reason = "minutes of some years")]
    pub fn unix_ms(&self, day: i64, minute: f64) -> u64 {
        let offset_ms = |unix_ms: i64| {
            let kind = self.0.find_local_time_type(unix_ms.div_euclid(1000));
            kind.map_or(0, |kind| i64::from(kind.ut_offset()) * 1000)
        };
        let local_ms = day * 86_400_000 + (minute * 60_000.0) as i64;
        let near = local_ms - offset_ms(local_ms);
        u64::try_from(local_ms - offset_ms(near)).unwrap_or(0)
    }

    /// The local time. A time for which the zone has no rule is taken as UTC.
    pub fn local(&self, unix_ms: u64) -> Local {
        let unix_s = i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX / 2);
        let offset_s = self.0.find_local_time_type(unix_s).map_or(0, |kind| kind.ut_offset());
        let local_s = unix_s + i64::from(offset_s);
        let minute = u16::try_from(local_s.rem_euclid(86_400) / 60).unwrap_or(0);
        Local { day: local_s.div_euclid(86_400), minute }
    }
}

impl Local {
    /// 0 to 59.
    pub fn minute_of_hour(self) -> u16 {
        self.minute % 60
    }

    /// Days since Thursday, 1970-01-01.
    pub fn day(self) -> i64 {
        self.day
    }

    /// Which hour since 1970 by this clock: two moments in the same hour of the same day agree.
    pub fn hour(self) -> i64 {
        self.day * 24 + i64::from(self.minute / 60)
    }

    /// 0 (Monday, 00:00) to 167 (Sunday, 23:00).
    pub fn hour_of_week(self) -> usize {
        // 1970-01-01 was a Thursday.
        usize::try_from((self.hour() + 3 * 24).rem_euclid(168)).unwrap_or(0)
    }

    /// The name of the day.
    pub fn weekday(self) -> &'static str {
        WEEKDAYS[self.hour_of_week() / 24]
    }

    /// Whether both are of the same day.
    pub fn is_same_day(self, other: Self) -> bool {
        self.day == other.day
    }

    /// `07:10`
    pub fn hh_mm(self) -> String {
        format!("{:02}:{:02}", self.minute / 60, self.minute % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZURICH: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

    fn shown(zone: &Zone, rfc3339: &str) -> String {
        let at = chrono::DateTime::parse_from_rfc3339(rfc3339).unwrap().timestamp_millis();
        let local = zone.local(u64::try_from(at).unwrap());
        format!("{} {}", local.weekday(), local.hh_mm())
    }

    #[test]
    fn local_time_follows_the_rule_through_the_year() {
        let zone = Zone::from_rule(ZURICH).unwrap();
        assert_eq!(shown(&zone, "2026-01-04T23:30:00Z"), "Monday 00:30");
        assert_eq!(shown(&zone, "2026-07-05T22:30:00Z"), "Monday 00:30");
        assert_eq!(shown(&zone, "2026-03-29T00:59:00Z"), "Sunday 01:59");
        assert_eq!(shown(&zone, "2026-03-29T01:00:00Z"), "Sunday 03:00");
        assert_eq!(shown(&zone, "2026-10-25T00:59:00Z"), "Sunday 02:59");
        assert_eq!(shown(&zone, "2026-10-25T01:00:00Z"), "Sunday 02:00");
        assert_eq!(shown(&Zone::utc(), "2026-01-05T00:00:00Z"), "Monday 00:00");
    }

    #[test]
    fn a_local_time_is_a_moment_also_when_the_clocks_are_set() {
        let day = |y, m, d| {
            let date = chrono::NaiveDate::from_ymd_opt(y, m, d).unwrap();
            (date - chrono::NaiveDate::default()).num_days()
        };
        let utc = |zone: &str, day, minute| {
            let unix_ms = Zone::from_rule(zone).unwrap().unix_ms(day, minute);
            shown(
                &Zone::utc(),
                &chrono::DateTime::from_timestamp_millis(unix_ms as i64).unwrap().to_rfc3339(),
            )
        };
        let new_york = "EST5EDT,M3.2.0,M11.1.0";
        assert_eq!(utc(ZURICH, day(2026, 7, 6), 30.0), "Sunday 22:30");
        assert_eq!(utc(ZURICH, day(2026, 10, 25), 150.0), "Sunday 01:30", "the later of two");
        assert_eq!(utc(ZURICH, day(2026, 3, 29), 150.0), "Sunday 01:30", "03:30 there");
        assert_eq!(utc(new_york, day(2026, 11, 1), 90.0), "Sunday 05:30", "the earlier of two");
        assert_eq!(utc(new_york, day(2026, 3, 8), 150.0), "Sunday 06:30", "01:30 there");
    }

    #[test]
    fn the_hours_of_a_week_are_counted_from_monday() {
        let hour = |at: u64| Zone::utc().local(at * 3_600_000).hour_of_week();
        assert_eq!((hour(0), hour(95), hour(96)), (72, 167, 0));
    }

    #[test]
    fn what_is_no_zone_is_refused() {
        assert!(Zone::from_rule("Europe/Zurich").is_err());
        assert!(Zone::from_rule("").is_err());
        assert!(Zone::from_rule("localtime").is_err());
        assert!(Zone::from_rule("/etc/passwd").is_err());
        assert!(Zone::from_file(b"TZif").is_err());
    }
}
