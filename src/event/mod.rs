//! CloudEvents: the envelope that keeps what it was given, its rules, and the lanes.

mod lane;

pub use lane::Lane;
