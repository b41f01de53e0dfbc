//! `hark detect`: the voice detector over sound files.

mod eval;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::{Failure, exit};
use crate::audio::SAMPLE_RATE_HZ;
use crate::driver::audio_file::AudioFile;
use crate::driver::{models, recogniser};
use crate::voice::{Detection, Detector, Model, OperatingPoint, ScorePoint, Settings};
use eval::Evaluation;

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
    /// Whether a recogniser is asked about what the detector is not sure of: auto (where it is
    /// installed), off, recogniser (an error where it is not)
    #[arg(long, default_value = "auto", value_parser = ["auto", "off", "recogniser"])]
    confirm: String,
    /// Directory of the voice models, searched before HARK_MODELS, /usr/share/hark/models and ./models
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Write the scores over time to this file: CSV with file, at_s, phrase, score each 100 ms
    #[arg(long, value_name = "CSV")]
    scores: Option<PathBuf>,
    /// Instead of detections print recall by group and false accepts an hour, with 95 % intervals,
    /// over the clips of a manifest: CSV with path, label (trigger, non-trigger), language, phrase,
    /// source_package
    #[arg(long, value_name = "MANIFEST", conflicts_with_all = ["json", "files"])]
    eval: Option<PathBuf>,
    /// The files: WAV or FLAC, 8 to 192 kHz
    #[arg(required_unless_present = "eval", value_name = "FILE")]
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
    let recogniser = match args.confirm.as_str() {
        "off" => None,
        "recogniser" => Some(recogniser::load(&search).map_err(|error| io(&error))?),
        _ => recogniser_if_there(&search),
    };
    let mut run = Run { model, settings, recogniser, scores: None };
    if let Some(path) = &args.scores {
        run.scores = Some(Scores::create(path).map_err(|error| io(&error))?);
    }
    let mut problems = Vec::new();
    match &args.eval {
        Some(manifest) => evaluate(&mut run, manifest, out, &mut problems)?,
        None => {
            for file in &args.files {
                let write = |detection: &Detection| write_line(args.json, file, detection, out);
                run.file(file, write).map_or_else(|stop| stop.noted(&mut problems), |_| Ok(()))?;
            }
        }
    }
    if let Some(scores) = run.scores {
        scores.finish().map_err(|error| io(&error))?;
    }
    if problems.is_empty() { Ok(()) } else { Err(io(&problems.join("\n"))) }
}

/// One that is not installed is not missed; one that is there and does not work is told.
fn recogniser_if_there(search: &[PathBuf]) -> Option<recogniser::Handle> {
    match recogniser::load(search) {
        Ok(handle) => Some(handle),
        Err(recogniser::RecogniserError::Missing { .. }) => None,
        Err(error) => {
            tracing::warn!("nothing is confirmed: {error}, or use --confirm off");
            None
        }
    }
}

fn evaluate(
    run: &mut Run,
    manifest: &Path,
    out: &mut impl Write,
    problems: &mut Vec<String>,
) -> Result<(), Failure> {
    let clips = eval::read_manifest(manifest).map_err(|error| Failure::new(exit::IO, error))?;
    let mut evaluation = Evaluation::default();
    for clip in &clips {
        let mut detections = 0;
        let count = |_: &Detection| {
            detections += 1;
            Ok(())
        };
        match run.file(&clip.path, count) {
            Ok(seconds) => evaluation.add(clip, detections, seconds),
            Err(stop) => stop.noted(problems)?,
        }
    }
    evaluation
        .write(out)
        .map_err(|error| Failure::new(exit::IO, format!("write standard output: {error}")))
}

/// Why a file was not done to its end.
enum Stop {
    /// The file cannot be used: go on with the next.
    File(String),
    /// Nobody takes what comes of it any more: go on with nothing.
    Output(String),
}

impl Stop {
    fn noted(self, problems: &mut Vec<String>) -> Result<(), Failure> {
        match self {
            Self::File(problem) => problems.push(problem),
            Self::Output(problem) => return Err(Failure::new(exit::IO, problem)),
        }
        Ok(())
    }
}

/// What all files share.
struct Run {
    model: Arc<Model>,
    settings: Settings,
    recogniser: Option<recogniser::Handle>,
    scores: Option<Scores>,
}

impl Run {
    /// Hands the detections of a file to `write`; returns how many seconds of sound it holds.
    fn file(
        &mut self,
        path: &Path,
        mut write: impl FnMut(&Detection) -> std::io::Result<()>,
    ) -> Result<f64, Stop> {
        let problem = |error: &dyn std::fmt::Display| Stop::File(error.to_string());
        let output = |error| Stop::Output(format!("write standard output: {error}"));
        let mut detector = Detector::new(Arc::clone(&self.model), &self.settings)
            .map_err(|error| problem(&error))?;
        if let Some(recogniser) = &self.recogniser {
            detector.confirm_with(recogniser.connect(), true);
        }
        if self.scores.is_some() {
            detector.keep_scores();
        }
        let mut file = AudioFile::open(path).map_err(|error| problem(&error))?;
        let (mut block, mut samples) = (Vec::new(), 0);
        // A damaged file still holds sound up to where the damage is.
        let ended = loop {
            block.clear();
            let more = file.next_block(&mut block);
            samples += block.len();
            for detection in detector.push(&block).map_err(|error| problem(&error))? {
                write(&detection).map_err(output)?;
            }
            self.keep(path, &mut detector)?;
            match more {
                Ok(true) => {}
                Ok(false) => break Ok(samples as f64 / f64::from(SAMPLE_RATE_HZ)),
                Err(error) => break Err(problem(&error)),
            }
        };
        for detection in detector.finish().map_err(|error| problem(&error))? {
            write(&detection).map_err(output)?;
        }
        self.keep(path, &mut detector)?;
        ended
    }

    fn keep(&mut self, path: &Path, detector: &mut Detector) -> Result<(), Stop> {
        let Some(scores) = &mut self.scores else { return Ok(()) };
        scores.add(path, detector.take_scores()).map_err(Stop::Output)
    }
}

/// The file of `--scores`.
struct Scores {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Scores {
    fn create(path: &Path) -> Result<Self, String> {
        let file =
            File::create(path).map_err(|error| format!("create {}: {error}", path.display()))?;
        let mut scores = Self { path: path.to_owned(), file: BufWriter::new(file) };
        let header = writeln!(scores.file, "file,at_s,phrase,score");
        scores.written(header)?;
        Ok(scores)
    }

    fn add(&mut self, file: &Path, points: Vec<ScorePoint>) -> Result<(), String> {
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let file = quoted(&file.to_string_lossy());
        for ScorePoint { at, phrase, score } in points {
            let (at_s, phrase) = (at.as_secs_f64(), quoted(&phrase));
            let line = writeln!(self.file, "{file},{at_s:.1},{phrase},{score:.3}");
            self.written(line)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), String> {
        let flushed = self.file.flush();
        self.written(flushed)
    }

    fn written(&self, result: std::io::Result<()>) -> Result<(), String> {
        result.map_err(|error| format!("write {}: {error}", self.path.display()))
    }
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
    use crate::voice::Agreement;
    use std::time::Duration;

    fn line(json: bool) -> String {
        let detection = Detection {
            phrase: "help me".to_owned(),
            score: 0.750_04,
            at: Duration::from_millis(12_340),
            level_dbfs: -20.4,
            agreement: Agreement::FirstStage,
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
