//! Calls somebody by running a program: `exec` of a contact.
//!
//! - The program is run as it is named, never through a shell; its standard input is the alarm as JSON,
//!   its standard error goes to the agent's log.
//! - Exit status 0: the call went out. Anything else, a program that cannot be started or one that takes
//!   longer than its limit: it did not.
//! - It has a process group of its own. At its limit, and when the agent ends, the whole group is
//!   killed, with whatever it has started.
//!
//! Calls of several alarms run beside each other. Absent: what the program does; retries, which are the
//! alarm's matter.

use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::sys;
use crate::clock::Clock;

/// How often running programs are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often the end of the agent is looked for while nothing runs.
const IDLE: Duration = Duration::from_secs(2);

/// A call to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dial {
    /// Of this alarm.
    pub alarm: String,
    /// Which of its calls.
    pub call: u32,
    /// Program and arguments.
    pub exec: Vec<String>,
    /// Its standard input.
    pub json: String,
    /// How long it may take.
    pub limit: Duration,
}

struct Running {
    dial: Dial,
    child: Child,
    until: Instant,
}

/// Makes the calls that come until `stop` says so, and tells how each ended: alarm, call, outcome.
pub fn run(
    calls: &Receiver<Dial>,
    clock: Clock,
    stop: impl Fn() -> bool,
    ended: impl Fn(String, u32, Result<String, String>),
) {
    let mut running: Vec<Running> = Vec::new();
    while !stop() {
        let wait = if running.is_empty() { IDLE } else { LOOK_EVERY };
        match calls.recv_timeout(wait) {
            Ok(dial) => {
                // Two at once would fight over one modem.
                for mut old in running.extract_if(.., |old| old.dial.alarm == dial.alarm) {
                    kill(&mut old.child);
                    ended(old.dial.alarm, old.dial.call, Err("killed by the next call".to_owned()));
                }
                match start(&dial) {
                    Ok(child) => {
                        let until = clock.now() + dial.limit;
                        running.push(Running { dial, child, until });
                    }
                    Err(problem) => ended(dial.alarm, dial.call, Err(problem)),
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let now = clock.now();
        for mut program in std::mem::take(&mut running) {
            match outcome(&mut program, now) {
                Some(outcome) => ended(program.dial.alarm, program.dial.call, outcome),
                None => running.push(program),
            }
        }
    }
    for mut program in running {
        kill(&mut program.child);
    }
}

fn start(dial: &Dial) -> Result<Child, String> {
    let (program, arguments) = dial.exec.split_first().ok_or("no program is named")?;
    let mut command = Command::new(program);
    command.args(arguments).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().map_err(|e| format!("start {program}: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // An alarm is smaller than a pipe, so that this waits for nobody; who does not read it, does not.
        let _ = stdin.write_all(dial.json.as_bytes());
    }
    Ok(child)
}

/// How it ended; `None` while it runs.
fn outcome(program: &mut Running, now: Instant) -> Option<Result<String, String>> {
    match program.child.try_wait() {
        Ok(Some(status)) => Some(judged(status)),
        Ok(None) if now < program.until => None,
        Ok(None) => {
            kill(&mut program.child);
            Some(Err(format!("killed after {} s", program.dial.limit.as_secs())))
        }
        Err(error) => Some(Err(format!("cannot be watched: {error}"))),
    }
}

fn judged(status: ExitStatus) -> Result<String, String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok("exit status 0".to_owned()),
        (Some(code), _) => Err(format!("exit status {code}")),
        (None, signal) => Err(format!("ended by signal {}", signal.unwrap_or(0))),
    }
}

/// The child has not been waited for, so that its number, which is that of the group, is still its own.
fn kill(child: &mut Child) {
    if sys::kill_group(child.id()).is_err() {
        let _ = child.kill();
    }
    let _ = child.wait();
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "real programs need real threads")]
mod tests {
    use super::*;
    use crate::clock::ClockState;
    use std::sync::mpsc::{channel, sync_channel};

    fn dial(script: &str, limit_ms: u64) -> Dial {
        Dial {
            alarm: "a1".to_owned(),
            call: 1,
            exec: ["/bin/sh", "-c", script, "dial", "+41 $HOME; x"].map(str::to_owned).to_vec(),
            json: r#"{"alarm":"a1"}"#.to_owned(),
            limit: Duration::from_millis(limit_ms),
        }
    }

    /// What became of the calls, in the order in which they ended.
    fn outcomes(dials: Vec<Dial>) -> Vec<Result<String, String>> {
        let clock = Clock::new(|| ClockState::Unsynced);
        let (calls, receiver) = sync_channel(8);
        let (told, heard) = channel();
        let count = dials.len();
        for dial in dials {
            calls.send(dial).unwrap();
        }
        let thread = std::thread::spawn(move || {
            run(&receiver, clock, || false, |_, _, outcome| told.send(outcome).unwrap());
        });
        let outcomes = heard.iter().take(count).collect();
        drop(calls);
        thread.join().unwrap();
        outcomes
    }

    #[test]
    fn a_program_is_run_with_its_arguments_and_the_alarm_and_judged_by_its_status() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let script = format!("cat > {0}; echo \"$1\" >> {0}", file.path().display());
        assert_eq!(outcomes(vec![dial(&script, 10_000)]), [Ok("exit status 0".to_owned())]);
        let written = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(written, "{\"alarm\":\"a1\"}+41 $HOME; x\n", "no shell has read it");
        for (script, expected) in [("exit 3", "exit status 3"), ("kill -9 $$", "ended by signal 9")]
        {
            assert_eq!(outcomes(vec![dial(script, 10_000)]), [Err(expected.to_owned())]);
        }
        let missing = Dial { exec: vec!["/nowhere/dial".to_owned()], ..dial("", 1) };
        let outcome = outcomes(vec![missing]).remove(0).unwrap_err();
        assert!(outcome.contains("/nowhere/dial"), "{outcome}");
    }

    #[test]
    fn the_next_call_of_an_alarm_ends_the_one_before() {
        let ended = outcomes(vec![dial("sleep 1000", 600_000), dial("exit 0", 10_000)]);
        assert_eq!(ended, [Err("killed by the next call".into()), Ok("exit status 0".into())]);
    }

    #[test]
    fn a_program_that_takes_too_long_is_killed_with_all_that_it_started() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let script = format!("sleep 1000 & echo $! > {}; wait", file.path().display());
        let began = Instant::now();
        let quick = Dial { alarm: "a2".to_owned(), ..dial("exit 0", 10_000) };
        let ended = outcomes(vec![dial(&script, 300), quick]);
        assert_eq!(ended, [Ok("exit status 0".into()), Err("killed after 0 s".into())]);
        assert!(began.elapsed() < Duration::from_secs(20));
        let child = std::fs::read_to_string(file.path()).unwrap();
        let stat = format!("/proc/{}/stat", child.trim());
        let gone = || {
            std::fs::read_to_string(&stat)
                .map_or(true, |stat| stat.contains(") Z ") || stat.contains(") X "))
        };
        while !gone() {
            assert!(began.elapsed() < Duration::from_secs(20), "the grandchild lives");
            std::thread::yield_now();
        }
    }
}
