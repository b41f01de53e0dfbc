//! `hark config`: check, show and describe the configuration.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Failure, exit};
use crate::config::{self, Loaded};

/// Check, show or describe the configuration
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Report everything that is wrong; exits 0 if nothing is, else 78
    Check(File),
    /// Print every setting in force and where it comes from
    Show(File),
    /// Print the JSON Schema of the configuration, for editors and generators
    Schema,
}

/// Where the configuration stands.
#[derive(Debug, clap::Args)]
pub struct File {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", default_value = "/etc/hark/hark.toml")]
    pub config: PathBuf,
    /// The same without the option's name
    #[arg(value_name = "FILE", conflicts_with = "config")]
    positional: Option<PathBuf>,
}

impl File {
    fn path(&self) -> &Path {
        self.positional.as_ref().unwrap_or(&self.config)
    }
}

/// # Errors
/// 78: the configuration is missing or wrong.
pub(super) fn run(args: &Args, mut out: impl Write) -> Result<(), Failure> {
    let printed = match &args.action {
        Action::Check(file) => {
            load(file.path())?;
            writeln!(out, "{}: well", file.path().display())
        }
        Action::Show(file) => load(file.path())?
            .settings
            .iter()
            .try_for_each(|s| writeln!(out, "{} = {}  # {}", s.key, s.value, s.origin)),
        Action::Schema => writeln!(out, "{:#}", config::schema()),
    };
    printed.map_err(|e| Failure::new(exit::IO, format!("write to standard output: {e}")))
}

/// Reads the file and the environment.
///
/// # Errors
/// 78 with every problem on a line of its own.
pub fn load(file: &Path) -> Result<Loaded, Failure> {
    parse(&file.display().to_string(), &read(file)?, environment())
}

/// # Errors
/// 78: there is no such file, or it is no text.
pub(super) fn read(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|e| {
        let message = format!("read configuration {}: {e}; name it with --config", file.display());
        Failure::new(exit::CONFIG, message)
    })
}

/// # Errors
/// 78 with every problem on a line of its own.
pub(super) fn parse(
    name: &str,
    text: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, Failure> {
    config::load(name, text, environment).map_err(|e| Failure::new(exit::CONFIG, e.to_string()))
}

/// The variables of the environment that are text.
pub(super) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
}
