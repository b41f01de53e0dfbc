//! `hark run`: the device process.

use std::path::PathBuf;

use super::{Failure, config, runtime};
use crate::agent;

/// Run the device process: listen, keep, publish
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", default_value = "/etc/hark/hark.toml")]
    pub config: PathBuf,
}

/// Runs until SIGTERM or SIGINT, then drains; reads its configuration anew on SIGHUP.
///
/// # Errors
/// 78: the configuration is wrong. 74: the outbox cannot be opened or failed. 69: a part failed
/// again and again.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let loaded = config::load(&args.config)?;
    runtime()?.block_on(async {
        let (stop, hangup) = agent::signals()?;
        let file = args.config.clone();
        let reload = agent::Reload::new(hangup, move || Ok(config::load(&file)?.config));
        let parts = agent::Parts { reload: Some(reload), ..agent::Parts::device() };
        agent::run(loaded.config, parts, stop).await
    })
}
