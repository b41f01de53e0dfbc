//! What the ALSA library has to say goes to our log: by itself it writes on standard error, a dozen lines
//! where no card is there, between ours.
//!
//! Absent: what threads of cpal's say, which is little; they are not ours to ask.

use alsa::Output;

/// Runs a call into cpal on this thread, and what ALSA says meanwhile goes to the log (debug).
pub(super) fn quietly<T>(call: impl FnOnce() -> T) -> T {
    // The buffer of the call before is dropped with this.
    let heard = Output::local_error_handler().ok();
    let result = call();
    if let Some(heard) = heard {
        heard.borrow().buffer_string(|text| {
            for line in String::from_utf8_lossy(text).lines() {
                tracing::debug!("ALSA: {line}");
            }
        });
    }
    result
}
