//! Subcommands, one file each: arguments in, work done, an exit code out.

pub mod detect;

/// Exit codes, after BSD `sysexits.h`.
pub mod exit {
    /// The command line is wrong.
    pub const USAGE: u8 = 64;
    /// A service is unavailable: the agent, the broker, the sound card.
    pub const UNAVAILABLE: u8 = 69;
    /// Input or output failed, or a file is not what it should be.
    pub const IO: u8 = 74;
    /// The configuration is wrong.
    pub const CONFIG: u8 = 78;
}

/// Why a command failed: its exit code and one line that says what, where and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// One of [`exit`].
    pub code: u8,
    /// One line, or one line for each problem where all are reported together.
    pub message: String,
}

impl Failure {
    /// A failure with one of the codes of [`exit`].
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}
