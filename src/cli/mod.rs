//! Subcommands, one file each: arguments in, work done, an exit code out.

mod client;
pub mod config;
pub mod detect;
pub mod doctor;
pub mod emit;
pub mod outbox;
pub mod run;
#[cfg(feature = "simulator")]
pub mod simulate;
pub mod status;

use clap::{CommandFactory, Parser, Subcommand};

/// The version, and the commit where the build was told one: `HARK_VERSION`, which
/// `scripts/cross-build` and the packages set.
pub const VERSION: &str = match option_env!("HARK_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

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

/// The agent of an emergency device: hears a cry for help and gets the news out.
#[derive(Debug, Parser)]
#[command(name = "hark", version = VERSION)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the device process: listen, keep, publish
    Run(run::Args),
    /// Run the same process on a desktop: an embedded broker, audio from a file, no hardware
    #[cfg(feature = "simulator")]
    Simulate(simulate::Args),
    /// Run the voice detector over WAV or FLAC files
    Detect(detect::Args),
    /// Hand CloudEvents to a running agent
    Emit(emit::Args),
    /// Look at what waits in the outbox, put dead letters back, destroy
    Outbox(outbox::Args),
    /// Show what the running agent says of itself
    Status(status::Args),
    /// Check everything a failed installation could be, and say how to mend it
    Doctor(doctor::Args),
    /// Check, show or describe the configuration
    Config(config::Args),
    /// Print a completion script for a shell
    Completions {
        /// bash, elvish, fish, powershell or zsh
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff)
    Man,
}

impl Cli {
    /// What is logged if nobody says otherwise: a service tells its story, a tool only trouble.
    pub fn default_log_level(&self) -> &'static str {
        match self.command {
            Command::Run(_) => "info",
            // It says itself what it finds.
            Command::Doctor(_) => "error",
            // The embedded broker calls every hang-up an error.
            #[cfg(feature = "simulator")]
            Command::Simulate(_) => "error,rumqttd=off",
            _ => "warn",
        }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// Whatever it failed at, with the exit code.
pub fn run(cli: Cli) -> Result<(), Failure> {
    let out = std::io::stdout();
    match cli.command {
        Command::Run(args) => run::run(&args),
        #[cfg(feature = "simulator")]
        Command::Simulate(args) => simulate::run(&args),
        Command::Detect(args) => detect::run(&args, &mut out.lock()),
        Command::Emit(args) => runtime()?.block_on(emit::run(&args, out.lock())),
        Command::Outbox(args) => runtime()?.block_on(outbox::run(&args, out.lock())),
        Command::Status(args) => runtime()?.block_on(status::run(&args, out.lock())),
        Command::Doctor(args) => runtime()?.block_on(doctor::run(&args, out.lock())),
        Command::Config(args) => config::run(&args, out.lock()),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "hark", &mut out.lock());
            Ok(())
        }
        Command::Man => clap_mangen::Man::new(Cli::command())
            .render(&mut out.lock())
            .map_err(|e| Failure::new(exit::IO, format!("write to standard output: {e}"))),
    }
}

/// One thread drives all sockets and timers; disk and detector have threads of their own.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(exit::UNAVAILABLE, format!("start the runtime: {e}")))
}
