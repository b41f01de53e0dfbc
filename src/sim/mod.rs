//! The simulator's world: a broker in the process, a home that is lived in, what can be broken in it, and a
//! terminal and a page that show what happens.
//!
//! Nothing here is part of a device; the feature `simulator` brings it.

pub mod broker;
pub mod display;
pub mod home;
pub mod household;
pub mod page;
pub mod relay;
pub mod switches;
