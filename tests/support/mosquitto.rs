//! Debian's mosquitto as the broker and `mosquitto_sub` as the subscriber: code that is not ours
//! on the other end of the wire.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::{free_port, wait_until};

/// How the broker is configured.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Who may connect; empty lets anybody in.
    pub users: Vec<(&'static str, &'static str)>,
    /// Lines of an ACL file, where there is to be one.
    pub acl: Option<&'static str>,
    /// Keeps sessions and queued messages through a restart (saved after every change).
    pub persistence: bool,
    /// Logs errors only: to log every packet takes it as long as to serve it.
    pub quiet: bool,
    /// More lines for mosquitto.conf, such as `max_packet_size 2000`.
    pub extra: &'static str,
    /// The newest TLS that it speaks, such as `TLSv1.2`; mosquitto itself can only set the oldest.
    pub newest_tls: Option<&'static str>,
}

/// A broker of the test's own. Dropping it kills it.
pub struct Mosquitto {
    port: u16,
    dir: TempDir,
    child: Option<Child>,
}

impl Mosquitto {
    /// A broker that lets anybody in and forgets everything on restart, ready to be connected to.
    pub fn start() -> Self {
        Self::with(Options::default())
    }

    /// A broker with these options on a free port, ready to be connected to.
    pub fn with(options: Options) -> Self {
        Self::on(free_port(), options)
    }

    /// The same on a port that the test has chosen.
    pub fn on(port: u16, options: Options) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut broker = Self { port, dir, child: None };
        broker.configure(&options);
        broker.restart();
        broker
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self, options: &Options) {
        let mut conf = format!(
            "listener {} 127.0.0.1\nallow_anonymous {}\nlog_dest file {}\nlog_type {}\n",
            self.port,
            options.users.is_empty(),
            self.path("log").display(),
            if options.quiet { "error" } else { "all" },
        );
        // Started as root, mosquitto would change to a user that cannot read this directory.
        conf += "user root\n";
        // The defaults hold back what a slow subscriber has not taken yet, and then drop it.
        conf += "max_queued_messages 0\nmax_inflight_messages 0\n";
        if !options.users.is_empty() {
            let passwords = self.path("passwords");
            fs::write(&passwords, "").expect("password file");
            fs::set_permissions(&passwords, fs::Permissions::from_mode(0o600)).expect("mode");
            for (user, password) in &options.users {
                let mut command = Command::new("mosquitto_passwd");
                command.arg("-b").arg(&passwords).args([user, password]);
                assert!(command.status().expect("mosquitto_passwd").success());
            }
            conf += &format!("password_file {}\n", passwords.display());
        }
        if let Some(acl) = options.acl {
            fs::write(self.path("acl"), acl).expect("ACL file");
            conf += &format!("acl_file {}\n", self.path("acl").display());
        }
        if options.persistence {
            conf += &format!(
                "persistence true\npersistence_location {}/\nautosave_on_changes true\nautosave_interval 1\n",
                self.dir.path().display(),
            );
        }
        let newest = options.newest_tls.map(|version| format!("MaxProtocol = {version}\n"));
        let openssl =
            "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = limits\n[limits]\n";
        fs::write(self.path("openssl.cnf"), openssl.to_owned() + &newest.unwrap_or_default())
            .expect("openssl.cnf");
        conf += options.extra;
        fs::write(self.path("mosquitto.conf"), conf + "\n").expect("mosquitto.conf");
    }

    /// Starts it again on the same port, ready to be connected to.
    pub fn restart(&mut self) {
        self.kill();
        let child = Command::new("mosquitto")
            .arg("-c")
            .arg(self.path("mosquitto.conf"))
            .env("OPENSSL_CONF", self.path("openssl.cnf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto is installed (Debian package mosquitto)");
        self.child = Some(child);
        wait_until("mosquitto listens", || {
            let child = self.child.as_mut().expect("just started");
            if let Some(status) = child.try_wait().expect("child") {
                panic!("mosquitto ended with {status}:\n{}", self.log());
            }
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    /// SIGSTOP: it stands and answers nothing until it is killed.
    pub fn freeze(&self) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args(["-STOP", &pid]).status().expect("kill").success());
    }

    /// kill -9: what a power cut does to a broker.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill mosquitto");
            child.wait().expect("wait for mosquitto");
        }
    }

    /// SIGTERM: sessions are saved where `persistence` is on.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = child.id().to_string();
            assert!(Command::new("kill").arg(pid).status().expect("kill").success());
            child.wait().expect("wait for mosquitto");
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `mqtt://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// What it has written to its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A message as a subscriber got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    /// It was kept by the broker from before the subscription.
    pub retained: bool,
    pub payload: Vec<u8>,
}

/// A `mosquitto_sub` of QoS 1. Dropping it kills it.
pub struct Subscriber {
    child: Child,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    subscribed: usize,
    messages: Vec<Message>,
}

impl Subscriber {
    /// Subscribed (SUBACK is there) to the filter, without login.
    pub fn start(port: u16, filter: &str) -> Self {
        Self::with(port, filter, &[])
    }

    /// The same with a session that the broker keeps under this client id.
    pub fn persistent(port: u16, filter: &str, client_id: &str) -> Self {
        Self::with(port, filter, &["-c", "-i", client_id])
    }

    /// The same with more options, such as `-u USER -P PASSWORD`.
    pub fn with(port: u16, filter: &str, options: &[&str]) -> Self {
        // Into a pipe it writes when its buffer is full: stdbuf makes that a line.
        let mut child = Command::new("stdbuf")
            .args(["-oL", "mosquitto_sub"])
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-t", filter, "-q", "1"])
            .args(["-V", "mqttv5", "-d", "-F", "= %r %x %t"])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto_sub is installed (Debian package mosquitto-clients)");
        let stdout = child.stdout.take().expect("piped");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let writer = Arc::clone(&seen);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let mut seen = writer.lock().expect("lock");
                match parse(&line) {
                    Some(message) => seen.messages.push(message),
                    None => seen.subscribed += usize::from(line.starts_with("Subscribed")),
                }
            }
        });
        let subscriber = Self { child, seen };
        wait_until("mosquitto_sub has subscribed", || subscriber.lock().subscribed > 0);
        subscriber
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("lock")
    }

    /// How often it has subscribed: once more after each reconnect.
    pub fn subscriptions(&self) -> usize {
        self.lock().subscribed
    }

    /// Everything received so far, in order.
    pub fn messages(&self) -> Vec<Message> {
        self.lock().messages.clone()
    }

    /// Waits until what was received satisfies `enough`, and returns it.
    #[track_caller]
    pub fn wait_for(&self, what: &str, enough: impl Fn(&[Message]) -> bool) -> Vec<Message> {
        wait_until(what, || enough(&self.lock().messages));
        self.messages()
    }

    /// Waits for the next message with this payload, whenever it came.
    #[track_caller]
    pub fn wait_for_payload(&self, payload: &[u8]) -> Message {
        let what = format!("a message {:?}", String::from_utf8_lossy(payload));
        let has = |m: &&Message| m.payload == payload;
        let all = self.wait_for(&what, |all| all.iter().any(|m| has(&m)));
        all.iter().find(has).expect("just seen").clone()
    }
}

/// A line `= RETAINED HEX TOPIC`; other lines are mosquitto_sub's own talk.
fn parse(line: &str) -> Option<Message> {
    let mut fields = line.strip_prefix("= ")?.splitn(3, ' ');
    let (retained, hex, topic) = (fields.next()?, fields.next()?, fields.next()?);
    let digit = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    let payload = (0..hex.len()).step_by(2).map(digit).collect::<Option<_>>()?;
    Some(Message { topic: topic.into(), retained: retained == "1", payload })
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
