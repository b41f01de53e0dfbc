//! The `hark` command.

use std::process::ExitCode;

use clap::Parser;
use hark::cli::detect;

#[derive(Parser)]
#[command(name = "hark")]
enum Command {
    /// Runs the voice detector over WAV or FLAC files
    Detect(detect::Args),
}

fn main() -> ExitCode {
    let Command::Detect(args) = Command::parse();
    match detect::run(&args, &mut std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("hark: {failure}");
            ExitCode::from(failure.code)
        }
    }
}
