//! `hark detect`: the voice detector over sound files.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::{Failure, exit};
use crate::driver::audio_file::AudioFile;
use crate::driver::models;
use crate::voice::{Detection, Detector, Model, OperatingPoint, Settings};

/// Runs the voice detector over WAV or FLAC files and prints one line for each detection.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON, one object a line: file, at_s, phrase, score
    #[arg(long)]
    json: bool,
    /// The lowest score that is a detection, 0 to 1
    #[arg(long, value_name = "SCORE", conflicts_with = "point", value_parser = parse_threshold)]
    threshold: Option<f32>,
    /// How readily it speaks up: sensitive, balanced or quiet
    #[arg(long, default_value = "balanced")]
    point: OperatingPoint,
    /// Directory of the voice models, searched before HARK_MODELS, /usr/share/hark/models and ./models
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// The files: WAV or FLAC, 8 to 192 kHz
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

fn parse_threshold(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(threshold) if (0.0..=1.0).contains(&threshold) => Ok(threshold),
        _ => Err("not a number between 0 and 1".to_owned()),
    }
}

/// A line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    file: &'a str,
    at_s: f64,
    phrase: &'a str,
    score: f64,
}

/// Looks into every file and writes the detections to `out`. Finding none is no failure.
///
/// # Errors
/// [`exit::IO`]: the model or a file cannot be read, one line each; all other files are done.
pub fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let io = |error: &dyn std::fmt::Display| Failure::new(exit::IO, error.to_string());
    let search = models::search_path(args.models.as_deref());
    let model = Arc::new(models::load(&search).map_err(|error| io(&error))?);
    let threshold = args.threshold.unwrap_or_else(|| args.point.threshold());
    let settings = Settings { threshold, ..Settings::default() };
    let mut problems = Vec::new();
    for file in &args.files {
        let write = |detection: &Detection| write_line(args.json, file, detection, out);
        match detect_file(&model, &settings, file, write) {
            Ok(()) => {}
            Err(Stop::File(problem)) => problems.push(problem),
            Err(Stop::Output(error)) => {
                return Err(io(&format!("write standard output: {error}")));
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(io(&problems.join("\n"))) }
}

/// Why a file was not done to its end.
enum Stop {
    /// The file cannot be used: go on with the next.
    File(String),
    /// Nobody reads any more: go on with nothing.
    Output(std::io::Error),
}

fn detect_file(
    model: &Arc<Model>,
    settings: &Settings,
    path: &Path,
    mut write: impl FnMut(&Detection) -> std::io::Result<()>,
) -> Result<(), Stop> {
    let problem = |error: &dyn std::fmt::Display| Stop::File(error.to_string());
    let mut detector =
        Detector::new(Arc::clone(model), settings).map_err(|error| problem(&error))?;
    let mut file = AudioFile::open(path).map_err(|error| problem(&error))?;
    let mut block = Vec::new();
    // A damaged file still holds sound up to where the damage is.
    let ended = loop {
        block.clear();
        let more = file.next_block(&mut block);
        for detection in detector.push(&block).map_err(|error| problem(&error))? {
            write(&detection).map_err(Stop::Output)?;
        }
        match more {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(error) => break Err(problem(&error)),
        }
    };
    for detection in detector.finish().map_err(|error| problem(&error))? {
        write(&detection).map_err(Stop::Output)?;
    }
    ended
}

fn write_line(
    json: bool,
    file: &Path,
    detection: &Detection,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let file = file.to_string_lossy();
    let at_s = detection.at.as_secs_f64();
    let Detection { phrase, score, level_dbfs, .. } = detection;
    if json {
        let rounded = |value: f64| (value * 1_000.0).round() / 1_000.0;
        let line =
            Line { file: &file, at_s: rounded(at_s), phrase, score: rounded(f64::from(*score)) };
        serde_json::to_writer(&mut *out, &line)?;
        writeln!(out)
    } else {
        writeln!(out, "{file}: \"{phrase}\" at {at_s:.1} s, score {score:.2}, {level_dbfs:.0} dBFS")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn line(json: bool) -> String {
        let detection = Detection {
            phrase: "help me".to_owned(),
            score: 0.750_04,
            at: Duration::from_millis(12_340),
            level_dbfs: -20.4,
        };
        let mut out = Vec::new();
        write_line(json, Path::new("a \"b\".wav"), &detection, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_line_has_the_four_members_of_the_contract() {
        assert_eq!(
            line(true),
            "{\"file\":\"a \\\"b\\\".wav\",\"at_s\":12.34,\"phrase\":\"help me\",\"score\":0.75}\n"
        );
    }

    #[test]
    fn human_line_says_where_what_and_how_sure() {
        assert_eq!(line(false), "a \"b\".wav: \"help me\" at 12.3 s, score 0.75, -20 dBFS\n");
    }

    #[test]
    fn threshold_outside_of_its_range_is_refused() {
        assert_eq!(parse_threshold("0.4"), Ok(0.4));
        for text in ["1.5", "-1", "nan", "high"] {
            assert!(parse_threshold(text).is_err(), "{text}");
        }
    }
}
