//! The `hark` binary as a process: started, watched by its log, stopped or killed by its id.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::wait_until;

/// The files of one device: they outlive the processes that run on it.
pub struct Device {
    dir: TempDir,
}

impl Device {
    /// A device with an empty outbox that publishes to `broker` and hears `audio`.
    pub fn new(broker: &str, audio: &str) -> Self {
        let device = Self { dir: tempfile::tempdir().expect("temporary directory") };
        let config = format!(
            "[device]\nid = \"test\"\n[audio]\ninput = {audio:?}\n[outbox]\npath = {:?}\n\
             [uplink]\nurl = {broker:?}\n[ingest]\nsocket = {:?}\n[ops]\nlisten = \"\"\n",
            device.outbox(),
            device.socket(),
        );
        fs::write(device.config(), config).expect("config");
        device
    }

    /// Adds lines to the configuration.
    pub fn configure(&self, lines: &str) {
        let text = fs::read_to_string(self.config()).expect("config");
        fs::write(self.config(), text + lines).expect("config");
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("hark.toml")
    }

    pub fn outbox(&self) -> PathBuf {
        self.dir.path().join("outbox")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("ingest.sock")
    }

    /// The command `hark run` on this device.
    pub fn command(&self) -> Command {
        let mut command = hark();
        command.arg("run").arg("--config").arg(self.config());
        command
    }

    /// Runs the agent.
    pub fn start(&self) -> Agent {
        Agent::spawn(self.command())
    }

    /// Hands an event in and returns once it is accepted, with the answer; `Err` if it was not.
    pub fn post(&self, event: &str) -> Result<String, String> {
        post(&self.socket(), "application/cloudevents+json", event)
    }
}

/// The binary that cargo has built for the tests.
pub fn hark() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hark"));
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    command.env_remove("HARK_LOG").env_remove("JOURNAL_STREAM");
    if std::env::var_os("HARK_MODELS").is_none() {
        command.env("HARK_MODELS", models);
    }
    command.stdin(Stdio::null());
    command
}

/// A running agent. Dropping it kills it.
pub struct Agent {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Agent {
    /// Runs the command and reads its standard error.
    pub fn spawn(mut command: Command) -> Self {
        let mut child =
            command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("run hark");
        let stderr = child.stderr.take().expect("piped");
        let log = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                writer.lock().expect("lock").push(line);
            }
        });
        Self { child, log }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Lines of the log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("lock").clone()
    }

    /// Waits for a line that holds all of these texts, and returns it.
    #[track_caller]
    pub fn wait_for_log(&mut self, texts: &[&str]) -> String {
        let find = |log: &[String]| {
            log.iter().find(|line| texts.iter().all(|text| line.contains(text))).cloned()
        };
        wait_until(&format!("the log says {texts:?}"), || {
            let found = find(&self.log()).is_some();
            if let (false, Ok(Some(status))) = (found, self.child.try_wait()) {
                assert!(
                    find(&self.log()).is_some(),
                    "hark ended ({status}):\n{}",
                    self.log().join("\n")
                );
            }
            found
        });
        find(&self.log()).expect("just found")
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().expect("kill hark");
        self.child.wait().expect("wait for hark");
    }

    /// SIGHUP.
    pub fn hang_up(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().expect("kill").success());
    }

    /// SIGTERM, and the exit status.
    pub fn stop(self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().expect("kill").success());
        self.wait()
    }

    /// Waits for its own end.
    pub fn wait(mut self) -> ExitStatus {
        let mut status = None;
        wait_until("hark ends", || {
            status = self.child.try_wait().expect("wait for hark");
            status.is_some()
        });
        status.expect("just ended")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// One HTTP request on a Unix socket; the body of a 2xx, or what went wrong.
pub fn post(socket: &Path, media_type: &str, body: &str) -> Result<String, String> {
    let failed = |e: std::io::Error| e.to_string();
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    let request = format!(
        "POST /events HTTP/1.1\r\nhost: hark\r\nconnection: close\r\ncontent-type: {media_type}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the connection was cut")?;
    if head.starts_with("HTTP/1.1 2") { Ok(body.to_owned()) } else { Err(answer) }
}
