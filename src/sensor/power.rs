//! Power supplies: from what the kernel says of one to a number and to the faults of the parts
//! `mains` and `battery`.
//!
//! The number goes the way of every reading ([`Sensor`](super::Sensor)); faults are told here at
//! once, since a device that runs on its battery may not have the time for a second look.

use crate::config::Supply;

/// Percent by which a battery must rise above `low` before it counts as charged again.
const RECOVERED_BY: f64 = 5.0;

/// What stands in the files of a supply; `None` where there is no such file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Condition {
    /// `type`: `Mains`, `USB`, `Battery`, `UPS`, …
    pub kind: Option<String>,
    /// `online`: not zero where the supply gives power.
    pub online: Option<bool>,
    /// `present`: a battery is in.
    pub present: Option<bool>,
    /// `capacity`: percent.
    pub capacity: Option<f64>,
    /// `capacity_level`: `Critical`, `Low`, `Normal`, `High`, `Full`, `Unknown`.
    pub level: Option<String>,
    /// `status`: `Charging`, `Discharging`, `Not charging`, `Full`, `Unknown`.
    pub status: Option<String>,
    /// `health`: `Good`, `Overheat`, `Dead`, …
    pub health: Option<String>,
}

/// Which part is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ailment {
    /// No mains power.
    Mains,
    /// The battery is low, missing or broken.
    Battery,
}

impl Ailment {
    /// What a supply of this kind can have.
    pub fn of(supply: Supply) -> Self {
        match supply {
            Supply::Mains => Self::Mains,
            Supply::Battery { .. } => Self::Battery,
        }
    }

    /// The name of the part in fault events.
    pub fn part(self) -> &'static str {
        match self {
            Self::Mains => "mains",
            Self::Battery => "battery",
        }
    }
}

/// What is to be told of a supply.
#[derive(Debug, Clone, PartialEq)]
pub enum PowerNews {
    /// The part is at fault, and why.
    Raised(Ailment, String),
    /// It no longer is. Told once at the beginning as well.
    Cleared(Ailment),
    /// Charging has begun or ended.
    Charging(bool),
}

/// The state of one supply.
#[derive(Debug, Clone)]
pub struct Power {
    supply: Supply,
    /// `None`: nothing was said yet.
    ailing: Option<bool>,
    charging: Option<bool>,
}

impl Power {
    /// A supply of which nothing is known yet.
    pub fn new(supply: Supply) -> Self {
        Self { supply, ailing: None, charging: None }
    }

    /// The number of this supply: mains 1 or 0, a battery's charge in percent.
    ///
    /// # Errors
    /// The supply does not say; one line.
    pub fn value(&self, condition: &Condition) -> Result<f64, String> {
        match self.supply {
            Supply::Mains => match condition.online {
                Some(online) => Ok(f64::from(u8::from(online))),
                None => Err("has no file `online`; is this the mains supply?".to_owned()),
            },
            Supply::Battery { .. } if condition.present == Some(false) => {
                Err("no battery is in".to_owned())
            }
            Supply::Battery { .. } => condition.capacity.ok_or_else(|| {
                "has no file `capacity`; is this a battery that measures its charge?".to_owned()
            }),
        }
    }

    /// Takes the condition; what is to be told of it.
    pub fn handle(&mut self, condition: &Condition) -> Vec<PowerNews> {
        let mut news = Vec::new();
        let ailment = Ailment::of(self.supply);
        let problem = match self.supply {
            Supply::Mains => mains_problem(condition),
            Supply::Battery { low } => battery_problem(condition, low, self.ailing == Some(true)),
        };
        if self.ailing != Some(problem.is_some()) {
            self.ailing = Some(problem.is_some());
            news.push(match problem {
                Some(problem) => PowerNews::Raised(ailment, problem),
                None => PowerNews::Cleared(ailment),
            });
        }
        let charging = condition.status.as_deref().and_then(|status| match status {
            "Charging" => Some(true),
            "Discharging" | "Not charging" | "Full" => Some(false),
            _ => None,
        });
        if charging.is_some() && self.charging != charging {
            self.charging = charging;
            news.extend(charging.map(PowerNews::Charging));
        }
        news
    }
}

fn mains_problem(condition: &Condition) -> Option<String> {
    let lost = condition.online == Some(false);
    lost.then(|| "mains power is lost; the device runs on its battery".to_owned())
}

fn battery_problem(condition: &Condition, low: f64, ailing: bool) -> Option<String> {
    if condition.present == Some(false) {
        return Some("no battery is in: the device ends with the next power cut".to_owned());
    }
    let health = condition.health.as_deref().unwrap_or("Unknown");
    if !matches!(health, "Good" | "Unknown" | "Cool" | "Warm") {
        return Some(format!("the battery says of itself: {health}"));
    }
    if let Some(capacity) = condition.capacity {
        let limit = if ailing { low + RECOVERED_BY } else { low };
        // A battery whose `low` leaves no room above it recovers when it is full.
        return (capacity <= limit.min(99.0)).then(|| format!("the battery is low: {capacity} %"));
    }
    let level = condition.level.as_deref()?;
    matches!(level, "Critical" | "Low").then(|| format!("the battery is low: it says {level}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn battery(capacity: f64, status: &str) -> Condition {
        Condition {
            present: Some(true),
            capacity: Some(capacity),
            status: Some(status.to_owned()),
            ..Condition::default()
        }
    }

    #[test]
    fn lost_mains_is_a_fault_that_ends_with_its_return() {
        let mut power = Power::new(Supply::Mains);
        let with = |online| Condition { online: Some(online), ..Condition::default() };
        assert_eq!(power.handle(&with(true)), [PowerNews::Cleared(Ailment::Mains)]);
        assert!(power.handle(&with(true)).is_empty());
        let lost = power.handle(&with(false));
        assert!(matches!(&lost[..], [PowerNews::Raised(Ailment::Mains, _)]), "{lost:?}");
        assert!(power.handle(&with(false)).is_empty());
        assert_eq!(power.handle(&with(true)), [PowerNews::Cleared(Ailment::Mains)]);
        assert_eq!(power.value(&with(false)), Ok(0.0));
        assert!(power.value(&Condition::default()).is_err());
    }

    #[test]
    fn a_battery_is_low_once_until_it_has_recovered() {
        let mut power = Power::new(Supply::Battery { low: 15.0 });
        let first = power.handle(&battery(50.0, "Discharging"));
        assert_eq!(first, [PowerNews::Cleared(Ailment::Battery), PowerNews::Charging(false)]);
        let low = power.handle(&battery(15.0, "Discharging"));
        let text = "the battery is low: 15 %".to_owned();
        assert_eq!(low, [PowerNews::Raised(Ailment::Battery, text)]);
        assert_eq!(power.handle(&battery(17.0, "Charging")), [PowerNews::Charging(true)]);
        assert!(power.handle(&battery(20.0, "Charging")).is_empty());
        let well = power.handle(&battery(21.0, "Charging"));
        assert_eq!(well, [PowerNews::Cleared(Ailment::Battery)]);
    }

    #[test]
    fn a_battery_that_is_missing_or_broken_or_only_says_low_is_a_fault() {
        let ill = |condition: Condition| {
            let news = Power::new(Supply::Battery { low: 15.0 }).handle(&condition);
            matches!(news.first(), Some(PowerNews::Raised(Ailment::Battery, _)))
        };
        assert!(ill(Condition { present: Some(false), ..Condition::default() }));
        assert!(ill(Condition { health: Some("Dead".into()), ..battery(90.0, "Full") }));
        assert!(ill(Condition { level: Some("Critical".into()), ..Condition::default() }));
        assert!(!ill(Condition { health: Some("Good".into()), ..battery(90.0, "Full") }));
        assert!(!ill(Condition { level: Some("Normal".into()), ..Condition::default() }));
    }

    #[test]
    fn a_fault_at_a_hundred_percent_can_end() {
        let mut power = Power::new(Supply::Battery { low: 100.0 });
        power.handle(&battery(60.0, "Unknown"));
        let well = power.handle(&battery(100.0, "Full"));
        assert!(well.contains(&PowerNews::Cleared(Ailment::Battery)), "{well:?}");
    }
}
