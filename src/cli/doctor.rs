//! `hark doctor`: everything that an installation can fail at, and how to mend it.

use std::io::Write;
use std::path::PathBuf;

use super::{Failure, config, exit};
use crate::agent::doctor::{Verdict, examine};
use crate::clock::Clock;
use crate::driver::host;

/// Check everything a failed installation could be, and say how to mend it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", default_value = "/etc/hark/hark.toml")]
    pub config: PathBuf,
}

/// Prints a line for each thing that was looked at.
///
/// # Errors
/// 78: the configuration is wrong. Otherwise the code of the first thing that is: 69, 74 or 78.
pub(super) async fn run(args: &Args, mut out: impl Write) -> Result<(), Failure> {
    let mut line = |verdict: &str, what: &str, detail: &str| {
        writeln!(out, "{verdict:<6}{what:<14}{detail}")
            .map_err(|e| Failure::new(exit::IO, format!("write to standard output: {e}")))
    };
    let loaded = config::load(&args.config)?;
    line("well", "configuration", &args.config.display().to_string())?;
    let mut wrong = Vec::new();
    for finding in examine(&loaded.config, Clock::new(host::clock_state)).await {
        let word = match finding.verdict {
            Verdict::Well => "well",
            Verdict::Poor => "poor",
            Verdict::Wrong(code) => {
                wrong.push((code, finding.what.clone()));
                "WRONG"
            }
        };
        line(word, &finding.what, &finding.detail)?;
    }
    let Some((code, _)) = wrong.first() else { return Ok(()) };
    let names: Vec<_> = wrong.iter().map(|(_, what)| what.as_str()).collect();
    let message =
        format!("not in order: {}; each line above says how to mend it", names.join(", "));
    Err(Failure::new(*code, message))
}
