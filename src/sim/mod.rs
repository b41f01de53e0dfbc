//! The simulator's world: a broker in the process, a home that is lived in, and a terminal that shows what
//! happens.
//!
//! Nothing here is part of a device; the feature `simulator` brings it.

pub mod broker;
pub mod display;
pub mod home;
pub mod household;
