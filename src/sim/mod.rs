//! The simulator's world: a broker in the process and a terminal that shows what happens.
//!
//! Nothing here is part of a device; the feature `simulator` brings it.

pub mod broker;
pub mod display;
