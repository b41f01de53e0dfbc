//! The events that the agent itself makes, each with its type, lane and data.

/// Placeholder
pub const X: u8 = 0;
