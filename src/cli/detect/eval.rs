//! `hark detect --eval`: how often the detector is right, and how often it is wrong, on labelled clips.
//!
//! A trigger counts as found if anything is detected in its clip; each detection in any other clip
//! counts as a false accept. Intervals are 95 %: Wilson for rates, exact Poisson for counts.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A clip of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clip {
    pub(super) path: PathBuf,
    trigger: bool,
    group: String,
}

/// Reads a manifest: CSV with a header; `path` (relative to the manifest) and `label` (`trigger` or
/// `non-trigger`) are needed, `language`, `phrase` and `source_package` make the groups.
///
/// # Errors
/// One line: which file, which line, what is wrong.
pub(super) fn read_manifest(manifest: &Path) -> Result<Vec<Clip>, String> {
    let text = std::fs::read_to_string(manifest)
        .map_err(|error| format!("read {}: {error}", manifest.display()))?;
    let directory = manifest.parent().unwrap_or(Path::new(""));
    parse(&text, directory).map_err(|problem| format!("{}: {problem}", manifest.display()))
}

fn parse(text: &str, directory: &Path) -> Result<Vec<Clip>, String> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let header = lines.next().map(|(_, line)| fields(line)).unwrap_or_default();
    let column = |name: &str| header.iter().position(|column| column == name);
    let needed = |name: &str| column(name).ok_or_else(|| format!("line 1: no column `{name}`"));
    let (path, label) = (needed("path")?, needed("label")?);
    let grouping: Vec<usize> =
        ["language", "phrase", "source_package"].into_iter().filter_map(column).collect();
    let clip = |(number, line): (usize, &str)| {
        let row = fields(line);
        let field = |column: usize| row.get(column).map_or("", String::as_str);
        let trigger = match field(label) {
            "trigger" => true,
            "non-trigger" => false,
            other => {
                let number = number + 1;
                return Err(format!("line {number}: label `{other}`: use trigger or non-trigger"));
            }
        };
        let group: Vec<&str> = grouping.iter().map(|&column| field(column)).collect();
        Ok(Clip { path: directory.join(field(path)), trigger, group: group.join(" ") })
    };
    lines.map(clip).collect()
}

/// The fields of a line of CSV. A quoted field may hold commas, and quotes written twice; no line
/// breaks.
fn fields(line: &str) -> Vec<String> {
    let (mut out, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' if quoted && rest.peek() == Some(&'"') => field.extend(rest.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => out.push(std::mem::take(&mut field)),
            _ => field.push(c),
        }
    }
    out.push(field);
    out
}

/// What came of the clips of a group.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    clips: u32,
    /// Triggers found, or false accepts.
    hits: u32,
    seconds: f64,
}

/// Sums up clips as they are done.
#[derive(Debug, Default)]
pub(super) struct Evaluation {
    triggers: BTreeMap<String, Count>,
    others: BTreeMap<String, Count>,
}

impl Evaluation {
    /// A clip of `seconds` gave that many detections.
    pub(super) fn add(&mut self, clip: &Clip, detections: u32, seconds: f64) {
        let groups = if clip.trigger { &mut self.triggers } else { &mut self.others };
        let hits = if clip.trigger { detections.min(1) } else { detections };
        for group in ["all", clip.group.as_str()] {
            let count = groups.entry(group.to_owned()).or_default();
            count.clips += 1;
            count.hits += hits;
            count.seconds += seconds;
        }
    }

    /// Two tables in Markdown: recall by group, false accepts an hour by group; `all` is the sum.
    pub(super) fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(out, "| triggers | clips | found |\n|---|---|---|")?;
        for (group, Count { clips, hits, .. }) in &self.triggers {
            let (low, high) = wilson(*hits, *clips);
            let percent = |rate: f64| (100.0 * rate).round();
            let rate = percent(f64::from(*hits) / f64::from(*clips));
            let (low, high) = (percent(low), percent(high));
            writeln!(out, "| {group} | {clips} | {hits} = {rate}% ({low}%-{high}%) |")?;
        }
        writeln!(out, "\n| other sound | minutes | false accepts | an hour |\n|---|---|---|---|")?;
        for (group, Count { hits, seconds, .. }) in &self.others {
            let hours = (seconds / 3_600.0).max(f64::EPSILON);
            let (low, high) = poisson(*hits);
            let (rate, low, high) = (f64::from(*hits) / hours, low / hours, high / hours);
            let minutes = seconds / 60.0;
            writeln!(out, "| {group} | {minutes:.1} | {hits} | {rate:.1} ({low:.1}-{high:.1}) |")?;
        }
        Ok(())
    }
}

/// The 95 % interval of a rate. Source: Wilson 1927.
fn wilson(hits: u32, of: u32) -> (f64, f64) {
    if of == 0 {
        return (0.0, 1.0);
    }
    let (n, z2) = (f64::from(of), 1.96f64 * 1.96);
    let rate = f64::from(hits) / n;
    let middle = (rate + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = (z2 * (rate * (1.0 - rate) / n + z2 / (4.0 * n * n))).sqrt() / (1.0 + z2 / n);
    ((middle - half).max(0.0), (middle + half).min(1.0))
}

/// The exact 95 % interval of the mean of a count, by bisection of the Poisson distribution.
/// Source: Garwood 1936.
fn poisson(count: u32) -> (f64, f64) {
    // P(X < below) of a mean.
    let fewer = |below: u32, mean: f64| {
        let mut term = -mean;
        let mut sum = 0.0;
        for k in 0..below {
            sum += term.exp();
            term += mean.ln() - f64::from(k + 1).ln();
        }
        sum
    };
    // `fewer` falls as the mean grows.
    let solve = |below: u32, probability: f64| {
        let (mut low, mut high) = (1e-9, 10.0 * f64::from(count) + 20.0);
        for _ in 0..100 {
            let middle = (low + high) / 2.0;
            if fewer(below, middle) > probability { low = middle } else { high = middle }
        }
        low
    };
    let least = if count == 0 { 0.0 } else { solve(count, 0.975) };
    (least, solve(count + 1, 0.025))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_tables() {
        let near = |(a, b): (f64, f64), (x, y): (f64, f64)| {
            assert!((a - x).abs() < 0.002 && (b - y).abs() < 0.002, "({a}, {b}) for ({x}, {y})");
        };
        near(wilson(54, 65), (0.722, 0.903));
        near(wilson(0, 19), (0.0, 0.168));
        near(wilson(0, 0), (0.0, 1.0));
        near(poisson(0), (0.0, 3.689));
        near(poisson(1), (0.0253, 5.572));
        near(poisson(10), (4.795, 18.390));
    }

    #[test]
    fn manifest_with_quoted_fields_is_read_and_its_paths_are_its_own() {
        let text = "path,label,language,phrase,source_package,licence\n\
                    a.flac,trigger,en,\"help, \"\"me\"\"\",kokoro,MIT\n\nb.wav,non-trigger,de,,x,y\n";
        let clips = parse(text, Path::new("dir")).unwrap();
        assert_eq!(clips.len(), 2);
        assert_eq!(clips[0].path, Path::new("dir/a.flac"));
        assert_eq!((clips[0].trigger, clips[0].group.as_str()), (true, "en help, \"me\" kokoro"));
        assert!(!clips[1].trigger);
    }

    #[test]
    fn manifest_that_is_none_is_refused_by_line_and_name() {
        let error = |text: &str| parse(text, Path::new("")).unwrap_err();
        assert!(error("").contains("`path`"));
        assert!(error("path,language\n").contains("`label`"));
        assert!(error("path,label\na,yes\n").contains("line 2: label `yes`"));
    }

    #[test]
    fn tables_say_recall_by_group_and_false_accepts_an_hour() {
        let clip =
            |trigger, group: &str| Clip { path: PathBuf::new(), trigger, group: group.to_owned() };
        let mut evaluation = Evaluation::default();
        evaluation.add(&clip(true, "en help"), 2, 3.0);
        evaluation.add(&clip(true, "en help"), 0, 3.0);
        evaluation.add(&clip(false, "en"), 3, 1_800.0);
        let mut out = Vec::new();
        evaluation.write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("| en help | 2 | 1 = 50% (9%-91%) |"), "{text}");
        assert!(text.contains("| all | 30.0 | 3 | 6.0 (1.2-17.5) |"), "{text}");
    }
}
