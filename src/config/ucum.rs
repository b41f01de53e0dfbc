//! Units of measurement: a closed table of UCUM codes, and what one is in another.
//!
//! A code is what stands in events and in `[[sensor]] unit`; consumers need not guess what `C` or
//! `percent` means. Two units convert if they measure the same [`Dimension`]: through the base unit of
//! that dimension, `base = factor · value + shift`.
//!
//! Absent: the grammar of UCUM (prefixes, products); a unit that is not in the table is refused,
//! since a typing error in a unit is worse than no start.
//!
//! Source: The Unified Code for Units of Measure, version 2.1, case-sensitive codes.

use std::fmt;

/// What a unit measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dimension {
    Temperature,
    Ratio,
    Pressure,
    Illuminance,
    Voltage,
    Current,
    Power,
    Energy,
    Frequency,
    Time,
    Length,
    Speed,
    Acceleration,
    Mass,
    Density,
    Level,
    Angle,
}

struct Row {
    code: &'static str,
    dimension: Dimension,
    factor: f64,
    shift: f64,
}

const fn row(code: &'static str, dimension: Dimension, factor: f64) -> Row {
    Row { code, dimension, factor, shift: 0.0 }
}

const fn shifted(code: &'static str, factor: f64, shift: f64) -> Row {
    Row { code, dimension: Dimension::Temperature, factor, shift }
}

/// The base unit of each dimension is the one with factor 1.
const TABLE: &[Row] = &[
    shifted("K", 1.0, 0.0),
    shifted("Cel", 1.0, 273.15),
    shifted("[degF]", 5.0 / 9.0, 459.67 * 5.0 / 9.0),
    row("1", Dimension::Ratio, 1.0),
    row("%", Dimension::Ratio, 1e-2),
    row("[ppth]", Dimension::Ratio, 1e-3),
    row("[ppm]", Dimension::Ratio, 1e-6),
    row("[ppb]", Dimension::Ratio, 1e-9),
    row("Pa", Dimension::Pressure, 1.0),
    row("hPa", Dimension::Pressure, 1e2),
    row("kPa", Dimension::Pressure, 1e3),
    row("mbar", Dimension::Pressure, 1e2),
    row("bar", Dimension::Pressure, 1e5),
    row("mm[Hg]", Dimension::Pressure, 133.322),
    row("lx", Dimension::Illuminance, 1.0),
    row("klx", Dimension::Illuminance, 1e3),
    row("V", Dimension::Voltage, 1.0),
    row("mV", Dimension::Voltage, 1e-3),
    row("A", Dimension::Current, 1.0),
    row("mA", Dimension::Current, 1e-3),
    row("W", Dimension::Power, 1.0),
    row("mW", Dimension::Power, 1e-3),
    row("kW", Dimension::Power, 1e3),
    row("J", Dimension::Energy, 1.0),
    row("W.h", Dimension::Energy, 3.6e3),
    row("kW.h", Dimension::Energy, 3.6e6),
    row("Hz", Dimension::Frequency, 1.0),
    row("/min", Dimension::Frequency, 1.0 / 60.0),
    row("/h", Dimension::Frequency, 1.0 / 3600.0),
    row("s", Dimension::Time, 1.0),
    row("ms", Dimension::Time, 1e-3),
    row("min", Dimension::Time, 60.0),
    row("h", Dimension::Time, 3600.0),
    row("m", Dimension::Length, 1.0),
    row("cm", Dimension::Length, 1e-2),
    row("mm", Dimension::Length, 1e-3),
    row("m/s", Dimension::Speed, 1.0),
    row("km/h", Dimension::Speed, 1.0 / 3.6),
    row("m/s2", Dimension::Acceleration, 1.0),
    row("g", Dimension::Mass, 1.0),
    row("kg", Dimension::Mass, 1e3),
    row("ug/m3", Dimension::Density, 1.0),
    row("mg/m3", Dimension::Density, 1e3),
    row("dB", Dimension::Level, 1.0),
    row("deg", Dimension::Angle, 1.0),
    row("rad", Dimension::Angle, 180.0 / std::f64::consts::PI),
];

/// A unit of the table. Small and cheap to copy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Unit(usize);

impl Unit {
    /// A plain number: the fourth row.
    pub const ONE: Self = Self(3);

    /// The unit with this code.
    pub fn from_code(code: &str) -> Option<Self> {
        TABLE.iter().position(|row| row.code == code).map(Self)
    }

    /// Every code there is, in the order of the table.
    pub fn codes() -> impl Iterator<Item = &'static str> {
        TABLE.iter().map(|row| row.code)
    }

    /// The code, as it stands in events.
    pub fn code(self) -> &'static str {
        TABLE[self.0].code
    }

    /// Whether a value of this unit can be said in the other.
    pub fn converts_to(self, other: Self) -> bool {
        TABLE[self.0].dimension == TABLE[other.0].dimension
    }

    /// The same quantity in another unit. Of a unit that does not convert the value stays as it is,
    /// which the configuration has ruled out.
    pub fn convert(self, value: f64, to: Self) -> f64 {
        if self == to || !self.converts_to(to) {
            return value;
        }
        let (from, to) = (&TABLE[self.0], &TABLE[to.0]);
        (value * from.factor + (from.shift - to.shift)) / to.factor
    }
}

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unit({})", self.code())
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(value: f64, from: &str, to: &str) -> f64 {
        Unit::from_code(from).unwrap().convert(value, Unit::from_code(to).unwrap())
    }

    #[test]
    fn known_values_convert() {
        for (value, from, to, expected) in [
            (0.0, "Cel", "K", 273.15),
            (100.0, "Cel", "[degF]", 212.0),
            (-40.0, "[degF]", "Cel", -40.0),
            (310.15, "K", "[degF]", 98.6),
            (0.04, "%", "[ppm]", 400.0),
            (101.325, "kPa", "hPa", 1013.25),
            (1013.25, "hPa", "Pa", 101_325.0),
            (1.5, "kW", "W", 1500.0),
            (1.0, "kW.h", "J", 3.6e6),
            (1200.0, "/min", "Hz", 20.0),
            (21.5, "Cel", "Cel", 21.5),
        ] {
            let got = convert(value, from, to);
            assert!((got - expected).abs() < 1e-9 * expected.abs().max(1.0), "{from} {to}: {got}");
        }
    }

    #[test]
    fn every_conversion_can_be_taken_back() {
        for from in (0..TABLE.len()).map(Unit) {
            for to in (0..TABLE.len()).map(Unit).filter(|to| from.converts_to(*to)) {
                let back = to.convert(from.convert(12.5, to), from);
                assert!((back - 12.5).abs() < 1e-6, "{from} {to}: {back}");
            }
        }
    }

    #[test]
    fn codes_stand_once_and_what_is_none_is_refused() {
        let codes: std::collections::BTreeSet<_> = Unit::codes().collect();
        assert_eq!(codes.len(), TABLE.len());
        for wrong in ["", "C", "°C", "cel", "percent", "ppm", "lux"] {
            assert_eq!(Unit::from_code(wrong), None, "{wrong}");
        }
        let unit = |code| Unit::from_code(code).unwrap();
        assert_eq!(Unit::ONE.code(), "1");
        assert!(!unit("Cel").converts_to(unit("%")));
    }
}
