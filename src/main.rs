//! The `hark` command: arguments → logging → the subcommand → an exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use hark::cli::{self, Cli, exit};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

fn main() -> ExitCode {
    hark::driver::sys::share_one_heap();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors, and clap knows which stream is theirs.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    log(cli.default_log_level());
    // One line in the log instead of a page on standard error; the supervisor does the rest.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("hark: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

/// To the journal with its fields under systemd, else to standard error; `HARK_LOG` says how much.
fn log(default_level: &str) {
    let filter: Targets = std::env::var("HARK_LOG")
        .ok()
        .and_then(|wanted| wanted.parse().ok())
        .or_else(|| default_level.parse().ok())
        .unwrap_or_default();
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let output = match journal {
        Some(journal) => journal.boxed(),
        None => fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .boxed(),
    };
    tracing_subscriber::registry().with(output.with_filter(filter)).init();
}
