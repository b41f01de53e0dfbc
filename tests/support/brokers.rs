//! RabbitMQ and NATS out of Debian's packages, each with ports, files, cookie and process group of its
//! own, so that nothing of the machine's is touched. `kill -9` goes to the group that the test started.

use std::fs;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
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
        let mut nats = Self::configured("hark-test", "");
        nats.restart();
        nats
    }

    /// Three nodes that keep every message three times.
    pub fn cluster() -> [Self; 3] {
        let ports = [free_port(), free_port(), free_port()];
        let routes = ports.map(|port| format!("\"nats-route://127.0.0.1:{port}\"")).join(", ");
        let mut nodes = ports.map(|port| {
            let cluster =
                format!("cluster {{ name: hark, listen: 127.0.0.1:{port}, routes: [{routes}] }}\n");
            Self::configured(&format!("hark-{port}"), &cluster)
        });
        nodes.iter_mut().for_each(Broker::restart);
        nodes
    }

    fn configured(name: &str, cluster: &str) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let (client, port) = (free_port(), free_port());
        let conf = format!(
            "listen: 127.0.0.1:{client}\nserver_name: {name}\njetstream {{ store_dir: {:?} }}\n\
             mqtt {{ listen: \"127.0.0.1:{port}\" }}\n{cluster}",
            dir.path().join("jetstream"),
        );
        fs::write(dir.path().join("nats.conf"), conf).expect("nats.conf");
        Self { port, dir, group: None }
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
    epmd: Arc<Epmd>,
    dir: TempDir,
    group: Option<Group>,
}

/// Erlang's register of nodes; nodes of one cluster share it.
struct Epmd {
    port: u16,
    _group: Group,
}

impl Epmd {
    fn start() -> Arc<Self> {
        let port = free_port();
        let mut command = Command::new("epmd");
        command.args(["-port", &port.to_string()]).env("ERL_EPMD_ADDRESS", "127.0.0.1");
        Arc::new(Self { port, _group: Group::spawn(&mut command) })
    }
}

impl RabbitMq {
    pub fn start() -> Self {
        let mut rabbit = Self::configured(free_port(), Epmd::start(), "");
        rabbit.restart();
        rabbit
    }

    /// Three nodes; the queue of a durable subscriber is kept by a majority of them.
    pub fn cluster() -> [Self; 3] {
        let epmd = Epmd::start();
        let ports = [free_port(), free_port(), free_port()];
        let mut members = String::from(
            "cluster_formation.peer_discovery_backend = classic_config\n\
             mqtt.durable_queue_type = quorum\n",
        );
        for (n, port) in (1..).zip(ports) {
            members +=
                &format!("cluster_formation.classic_config.nodes.{n} = {}\n", node_name(port));
        }
        let mut nodes = ports.map(|port| Self::configured(port, Arc::clone(&epmd), &members));
        nodes.iter_mut().for_each(Broker::restart);
        nodes
    }

    fn configured(amqp: u16, epmd: Arc<Epmd>, more: &str) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let (port, distribution) = (free_port(), free_port());
        let conf = format!(
            "listeners.tcp.1 = 127.0.0.1:{amqp}\nmqtt.listeners.tcp.1 = 127.0.0.1:{port}\n\
             mqtt.allow_anonymous = true\nmqtt.prefetch = 1000\n\
             disk_free_limit.absolute = 50MB\n{more}"
        );
        fs::write(dir.path().join("rabbitmq.conf"), conf).expect("rabbitmq.conf");
        fs::write(dir.path().join("plugins"), "[rabbitmq_mqtt].\n").expect("plugins");
        Self { port, amqp, distribution, epmd, dir, group: None }
    }
}

fn node_name(amqp: u16) -> String {
    format!("hark-{amqp}@localhost")
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
            .env("ERL_EPMD_PORT", self.epmd.port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", node_name(self.amqp))
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
