//! What is remembered across restarts, and its form in a file.
//!
//! ```text
//! hark-activity 1 CRC32 LENGTH\n
//! {"cells":[[…],…],…}
//! ```
//! The second line is JSON, so that a person can look at what was learned. The sum tells a damaged file
//! from a whole one; then learning begins anew.

use serde::{Deserialize, Serialize};

use super::rhythm::{HOURS, WEEKS};

const MAGIC: &str = "hark-activity 1";

/// Nobody is expected to be at home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Away {
    /// Milliseconds since 1970; `None`: until it is called off.
    pub until_ms: Option<u64>,
}

/// All that must survive a restart.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    /// The rhythm: for each hour of the week the longest silences, minutes, the newest last.
    pub cells: Vec<Vec<u16>>,
    /// When the last sign was, if the clock could be believed.
    pub last_sign_ms: Option<u64>,
    /// Somebody had left by the front door.
    pub out: bool,
    /// Inactivity was detected and is not over.
    pub detected: bool,
    /// A holiday.
    pub away: Option<Away>,
}

/// Why a memory cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// It does not begin as it should, or with a version that is not known here.
    #[error("it does not begin with `{MAGIC}`")]
    Header,
    /// Length or sum are wrong: it was cut off or changed.
    #[error("its length or sum is wrong")]
    Damaged,
    /// It is whole and says something that cannot be.
    #[error("its content is wrong: {0}")]
    Content(String),
}

impl Memory {
    /// The bytes of the file.
    ///
    /// # Errors
    /// Never with what this module makes.
    pub fn encode(&self) -> Result<Vec<u8>, MemoryError> {
        let body = serde_json::to_string(self).map_err(|e| MemoryError::Content(e.to_string()))?;
        let sum = crc32fast::hash(body.as_bytes());
        Ok(format!("{MAGIC} {sum:08x} {}\n{body}\n", body.len()).into_bytes())
    }

    /// # Errors
    /// What is wrong with it; learning then begins anew.
    pub fn decode(bytes: &[u8]) -> Result<Self, MemoryError> {
        let text = std::str::from_utf8(bytes).map_err(|_| MemoryError::Damaged)?;
        let (header, body) = text.split_once('\n').ok_or(MemoryError::Header)?;
        let rest = header.strip_prefix(MAGIC).ok_or(MemoryError::Header)?;
        let body = body.strip_suffix('\n').ok_or(MemoryError::Damaged)?;
        let expected = format!(" {:08x} {}", crc32fast::hash(body.as_bytes()), body.len());
        if rest != expected {
            return Err(MemoryError::Damaged);
        }
        let memory: Self =
            serde_json::from_str(body).map_err(|e| MemoryError::Content(e.to_string()))?;
        let cells = &memory.cells;
        if !matches!(cells.len(), 0 | HOURS) || cells.iter().any(|cell| cell.len() > WEEKS) {
            return Err(MemoryError::Content("there are too many or too few hours".to_owned()));
        }
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Memory {
        Memory {
            cells: vec![vec![5; WEEKS]; HOURS],
            last_sign_ms: Some(1_700_000_000_000),
            out: true,
            detected: true,
            away: Some(Away { until_ms: None }),
        }
    }

    #[test]
    fn what_was_written_is_read_back() {
        for memory in [example(), Memory::default()] {
            assert_eq!(Memory::decode(&memory.encode().unwrap()), Ok(memory));
        }
    }

    #[test]
    fn no_cut_and_no_flipped_bit_goes_unnoticed() {
        let bytes = example().encode().unwrap();
        for cut in 0..bytes.len() {
            assert!(Memory::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        for place in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 4;
            assert!(Memory::decode(&damaged).is_err(), "{place}");
        }
    }

    #[test]
    fn what_is_whole_and_cannot_be_is_refused() {
        let with =
            |cells: Vec<Vec<u16>>| Memory::decode(&Memory { cells, ..example() }.encode().unwrap());
        assert!(matches!(with(vec![vec![]; HOURS - 1]), Err(MemoryError::Content(_))));
        assert!(matches!(with(vec![vec![1; WEEKS + 1]; HOURS]), Err(MemoryError::Content(_))));
        assert_eq!(Memory::decode(b"hark-activity 2 0 0\n"), Err(MemoryError::Header));
    }
}
