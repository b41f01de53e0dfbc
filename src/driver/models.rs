//! Finding the weights of the voice detector and loading them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::voice::{Model, VoiceError};

/// Where a package installs the weights.
const SYSTEM_DIRECTORY: &str = "/usr/share/hark/models";
/// Where `scripts/fetch-models` puts them in a working copy.
const LOCAL_DIRECTORY: &str = "models";
/// Names a directory to search before the usual ones.
const VARIABLE: &str = "HARK_MODELS";

const WEIGHTS_FILE: &str = "asr_waveform.onnx";
const VOCABULARY_FILE: &str = "g2p_vocab.json";

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
pub enum ModelsError {
    /// None of the places has it.
    #[error(
        "no voice model {name} in {searched}: run scripts/fetch-models, or name its directory with HARK_MODELS",
        name = Model::NAME
    )]
    Missing {
        /// The directories that were searched, separated by commas.
        searched: String,
    },
    /// It is there and cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is there and is damaged.
    #[error("{directory}: {source}")]
    Load {
        /// Where it was found.
        directory: PathBuf,
        /// What is wrong with it.
        source: VoiceError,
    },
}

/// The directories that are searched, in this order: `explicit` (from the command line or the
/// configuration), `$HARK_MODELS`, `/usr/share/hark/models`, `./models`.
pub fn search_path(explicit: Option<&Path>) -> Vec<PathBuf> {
    let from_environment = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
    let mut path: Vec<PathBuf> = explicit.map(Path::to_owned).into_iter().collect();
    path.extend(from_environment.map(PathBuf::from));
    path.extend([PathBuf::from(SYSTEM_DIRECTORY), PathBuf::from(LOCAL_DIRECTORY)]);
    let mut seen = BTreeSet::new();
    path.retain(|place| seen.insert(place.clone()));
    path
}

/// Loads the model from the first directory of `search_path` that has one. Blocks for tens of
/// milliseconds.
///
/// # Errors
/// [`ModelsError::Missing`]: names every place that was searched; [`ModelsError::Read`],
/// [`ModelsError::Load`]: the first place that has a model has a damaged one. The search does not
/// go on then: an older model elsewhere would be a surprise.
pub fn load(search_path: &[PathBuf]) -> Result<Model, ModelsError> {
    for place in search_path {
        // The directory with all models, or that of this model itself.
        for directory in [place.join(Model::NAME), place.clone()] {
            if directory.join(WEIGHTS_FILE).exists() {
                return load_from(&directory);
            }
        }
    }
    let searched: Vec<String> = search_path.iter().map(|p| p.display().to_string()).collect();
    Err(ModelsError::Missing { searched: searched.join(", ") })
}

fn load_from(directory: &Path) -> Result<Model, ModelsError> {
    let read =
        |path: PathBuf| std::fs::read(&path).map_err(|source| ModelsError::Read { path, source });
    let weights = read(directory.join(WEIGHTS_FILE))?;
    let vocabulary = read(directory.join(VOCABULARY_FILE))?;
    Model::load(weights, &String::from_utf8_lossy(&vocabulary))
        .map_err(|source| ModelsError::Load { directory: directory.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_model_names_every_place_and_the_remedy() {
        let error = load(&[PathBuf::from("/nowhere/a"), PathBuf::from("/nowhere/b")]).unwrap_err();
        let text = error.to_string();
        for part in ["/nowhere/a, /nowhere/b", "scripts/fetch-models", Model::NAME] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn explicit_directory_is_searched_first_and_the_working_directory_last() {
        let path = search_path(Some(Path::new("/mine")));
        assert_eq!(path.first().map(PathBuf::as_path), Some(Path::new("/mine")));
        assert_eq!(path.last().map(PathBuf::as_path), Some(Path::new("models")));
    }

    #[test]
    fn damaged_model_is_an_error_that_names_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(WEIGHTS_FILE), b"not a model").unwrap();
        let search = [directory.path().to_owned()];
        assert!(matches!(load(&search), Err(ModelsError::Read { .. })), "vocabulary is missing");
        std::fs::write(directory.path().join(VOCABULARY_FILE), r#"{"decoder":["a"]}"#).unwrap();
        let text = load(&search).unwrap_err().to_string();
        assert!(text.contains(&directory.path().display().to_string()), "{text}");
    }
}
