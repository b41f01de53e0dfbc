//! What the device feels: buttons.

pub mod button;
