//! RabbitMQ and NATS out of Debian's packages, each with ports, files, cookie and process group of its
//! own, so that nothing of the machine's is touched. `kill -9` goes to the group that the test started.

use std::fs;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::free_port;
use super::mosquitto::Mosquitto;

/// A broker that a test may crash.
pub trait Broker {
    fn port(&self) -> u16;
    /// kill -9.
    fn crash(&mut self);
    /// Starts it again on the same port and files; returns once it takes connections.
    fn restart(&mut self);
}

impl Broker for Mosquitto {
    fn port(&self) -> u16 {
        Mosquitto::port(self)
    }

    fn crash(&mut self) {
        self.kill();
    }

    fn restart(&mut self) {
        Mosquitto::restart(self);
    }
}

/// Whether the program is installed; the matrix leaves out what is not, and says so.
pub fn installed(program: &str) -> bool {
    let found = Path::new(program).exists();
    if !found {
        eprintln!("left out: {program} is not installed (scripts/torture brokers installs it)");
    }
    found
}

/// A process group of the test's own. Dropping it kills it.
struct Group(Child);

impl Group {
    fn spawn(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.process_group(0).spawn().expect("start a broker"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        Command::new("kill").args(["-9", "--", &group]).status().ok();
        self.0.wait().ok();
    }
}

/// Erlang needs long on a busy machine.
fn wait_for_port(port: u16, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(180);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "{what} does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub const NATS: &str = "/usr/sbin/nats-server";
pub const RABBITMQ: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// nats-server with JetStream and its MQTT 3.1.1 listener.
pub struct Nats {
    port: u16,
    dir: TempDir,
    group: Option<Group>,
}

impl Nats {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let (client, port) = (free_port(), free_port());
        let conf = format!(
            "listen: 127.0.0.1:{client}\nserver_name: hark-test\n\
             jetstream {{ store_dir: {:?} }}\nmqtt {{ listen: \"127.0.0.1:{port}\" }}\n",
            dir.path().join("jetstream"),
        );
        fs::write(dir.path().join("nats.conf"), conf).expect("nats.conf");
        let mut nats = Self { port, dir, group: None };
        nats.restart();
        nats
    }
}

impl Broker for Nats {
    fn port(&self) -> u16 {
        self.port
    }

    fn crash(&mut self) {
        self.group = None;
    }

    fn restart(&mut self) {
        self.crash();
        let conf = self.dir.path().join("nats.conf");
        self.group = Some(Group::spawn(Command::new(NATS).arg("-c").arg(conf)));
        wait_for_port(self.port, "nats-server");
    }
}

/// RabbitMQ with its MQTT plugin, and an epmd of its own.
pub struct RabbitMq {
    port: u16,
    amqp: u16,
    distribution: u16,
    epmd_port: u16,
    _epmd: Group,
    dir: TempDir,
    group: Option<Group>,
}

impl RabbitMq {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let (port, amqp, distribution, epmd_port) =
            (free_port(), free_port(), free_port(), free_port());
        let conf = format!(
            "listeners.tcp.1 = 127.0.0.1:{amqp}\nmqtt.listeners.tcp.1 = 127.0.0.1:{port}\n\
             mqtt.allow_anonymous = true\nmqtt.prefetch = 1000\ndisk_free_limit.absolute = 50MB\n"
        );
        fs::write(dir.path().join("rabbitmq.conf"), conf).expect("rabbitmq.conf");
        fs::write(dir.path().join("plugins"), "[rabbitmq_mqtt].\n").expect("plugins");
        let mut epmd = Command::new("epmd");
        epmd.args(["-port", &epmd_port.to_string()]).env("ERL_EPMD_ADDRESS", "127.0.0.1");
        let epmd = Group::spawn(&mut epmd);
        let mut rabbit =
            Self { port, amqp, distribution, epmd_port, _epmd: epmd, dir, group: None };
        rabbit.restart();
        rabbit
    }
}

impl Broker for RabbitMq {
    fn port(&self) -> u16 {
        self.port
    }

    fn crash(&mut self) {
        self.group = None;
    }

    fn restart(&mut self) {
        self.crash();
        let path = |name: &str| self.dir.path().join(name);
        let mut command = Command::new(RABBITMQ);
        command
            .env("HOME", self.dir.path())
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", format!("hark-{}@localhost", self.amqp))
            .env("RABBITMQ_NODE_PORT", self.amqp.to_string())
            .env("RABBITMQ_DIST_PORT", self.distribution.to_string())
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-setcookie hark-test")
            .env("RABBITMQ_MNESIA_BASE", path("mnesia"))
            .env("RABBITMQ_LOG_BASE", path("log"))
            .env("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", path("generated"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", path("plugins"));
        self.group = Some(Group::spawn(&mut command));
        wait_for_port(self.port, "rabbitmq-server");
    }
}
