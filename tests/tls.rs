//! Every way to the broker against Debian's mosquitto and openssl: TLS with good and bad certificates
//! on both sides, WebSocket, a proxy; and what people are told when it cannot be.

#![allow(
    clippy::disallowed_methods,
    reason = "a real broker, real sockets and real time are what is tested here"
)]
#![allow(clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hark::driver::net::{Connector, Settings, TlsFiles};
use hark::driver::uplink::Config;
use hark::uplink::{Credentials, Notice, Outgoing, Protocol};
use support::mosquitto::{Mosquitto, Options, Subscriber};
use support::tunnel::Tunnel;
use support::uplink::{Device, config, ended_orderly, outgoing};
use support::{free_port, kit, wait_until};

const EVENTS: &str = "hark/flat-12/events/#";

/// A mosquitto with a second listener, whose lines may name files of the kit as `@NAME`.
fn broker(lines: &str) -> (Mosquitto, u16) {
    broker_up_to(None, lines)
}

/// The same that speaks no newer TLS than this.
fn broker_up_to(newest_tls: Option<&'static str>, lines: &str) -> (Mosquitto, u16) {
    let port = free_port();
    let lines = lines.replace('@', &format!("{}/", kit().display()));
    let extra = format!("listener {port} 127.0.0.1\nallow_anonymous true\n{lines}\n");
    let options = Options { extra: extra.leak(), newest_tls, ..Options::default() };
    let broker = Mosquitto::with(options);
    (broker, port)
}

/// The lines of a TLS listener with this certificate of the kit.
fn tls(certificate: &str) -> String {
    format!("certfile @{certificate}.pem\nkeyfile @{certificate}.key\n")
}

/// The same that wants a certificate of the device.
fn mutual() -> String {
    tls("server") + "cafile @ca.pem\ncrlfile @crl.pem\nrequire_certificate true\n"
}

fn trusting(ca: &str) -> TlsFiles {
    TlsFiles { ca_file: Some(kit().join(ca)), ..TlsFiles::default() }
}

/// The device's files: certificate and key of the kit.
fn showing(certificate: &str, key: &str) -> TlsFiles {
    let cert_file = Some(kit().join(certificate));
    TlsFiles { cert_file, key_file: Some(kit().join(key)), ..trusting("ca.pem") }
}

fn over(scheme: &str, port: u16, tls: TlsFiles) -> Config {
    let mut config = config(&format!("{scheme}://localhost:{port}"), Protocol::Auto);
    config.transport.tls = tls;
    config
}

/// Publishes a hundred events; how the transport was described, if it was.
async fn hundred_arrive(config: Config, broker: &Mosquitto) -> Option<String> {
    let subscriber = Subscriber::start(broker.port(), EVENTS);
    let mut device = Device::start(config);
    device.publish_all(0..100).await;
    let received = subscriber.wait_for("100 messages", |all| all.len() >= 100);
    for (token, message) in received.iter().enumerate() {
        assert_eq!(message.payload, outgoing(token as u64).payload);
    }
    let (_, notices) = device.shut_down().await;
    assert!(ended_orderly(&notices));
    reached(&notices)
}

fn reached(notices: &[Notice]) -> Option<String> {
    notices.iter().rev().find_map(|notice| match notice {
        Notice::Reached { how } => Some(how.clone()),
        _ => None,
    })
}

/// What people read of the first attempt, which must fail.
async fn story_of_failure(config: Config) -> String {
    let mut device = Device::start(config);
    let failed =
        device.wait_for(|n| matches!(n, Notice::Retrying { .. } | Notice::Connected { .. }));
    match failed.await {
        Notice::Retrying { message, .. } => message,
        other => panic!("connected: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_arrive_over_every_scheme() {
    let (plain, port) = broker("protocol websockets");
    assert_eq!(hundred_arrive(over("mqtt", plain.port(), TlsFiles::default()), &plain).await, None);
    let how = hundred_arrive(over("ws", port, TlsFiles::default()), &plain).await;
    assert_eq!(how, Some(format!("localhost:{port} (WebSocket)")));
    let (broker_tls, port) = broker(&tls("server"));
    let how = hundred_arrive(over("mqtts", port, trusting("ca.pem")), &broker_tls).await;
    assert_eq!(how, Some(format!("localhost:{port} (TLS 1.3)")));
    let (broker_wss, port) = broker(&(tls("server") + "protocol websockets\n"));
    let how = hundred_arrive(over("wss", port, trusting("ca.pem")), &broker_wss).await;
    assert_eq!(how, Some(format!("localhost:{port} (TLS 1.3, WebSocket)")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_knows_only_tls_1_2_is_served() {
    let (broker, port) = broker_up_to(Some("TLSv1.2"), &tls("server"));
    let how = hundred_arrive(over("mqtts", port, trusting("ca.pem")), &broker).await;
    assert_eq!(how, Some(format!("localhost:{port} (TLS 1.2)")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_knows_only_tls_1_1_is_refused() {
    let server = OpenSsl::start("server", &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]);
    let refused = connector(trusting("ca.pem")).connect(&server.url("mqtts")).await;
    let text = refused.err().unwrap().to_string();
    assert!(text.contains("TLS 1.2"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_certificate_of_a_broker_is_refused_by_its_own_words_and_nothing_is_said_to_it() {
    let table: [(&str, &[&str]); 6] = [
        ("server-other-host", &["for other.example, not for localhost"]),
        ("server-expired", &["expired on 2025-02-01T00:00:00Z", "this device's clock says 20"]),
        ("server-future", &["not valid before 2090-01-01T00:00:00Z", "check the clock first"]),
        ("server-stranger", &["of a CA that is not in ca_file", "ca.pem"]),
        ("server-revoked", &["its CA has revoked", "crl.pem"]),
        ("server-usage", &["not meant for servers", "serverAuth"]),
    ];
    for (certificate, words) in table {
        let (broker, port) = broker(&tls(certificate));
        let wire = Tunnel::to(port).await;
        let mut files = trusting("ca.pem");
        files.crl_file = Some(kit().join("crl.pem"));
        let mut config = over("mqtts", wire.port(), files);
        config.session.credentials =
            Some(Credentials { username: "someone".into(), password: b"secret".to_vec() });
        let story = story_of_failure(config).await;
        println!("{certificate}: {story}");
        assert!(words.iter().all(|word| story.contains(word)), "{certificate}: {story}");
        assert_eq!(story.lines().count(), 1);
        nothing_in_clear(&wire);
        assert!(!broker.log().contains("New client connected from 127.0.0.1 as flat-12"));
    }
}

/// What the wire saw holds nothing of ours but the host's name in the TLS hello.
fn nothing_in_clear(wire: &Tunnel) {
    let seen = wire.seen();
    assert!(!seen.is_empty(), "the wire was used");
    for word in ["hark", "flat-12", "someone", "secret", "MQTT"] {
        assert!(!contains(&seen, word.as_bytes()), "{word} went out in clear");
    }
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_the_wire_sees_nothing_and_without_it_everything() {
    let (broker, port) = broker(&tls("server"));
    let wire = Tunnel::to(port).await;
    hundred_arrive(over("mqtts", wire.port(), trusting("ca.pem")), &broker).await;
    nothing_in_clear(&wire);
    let clear = Tunnel::to(broker.port()).await;
    hundred_arrive(over("mqtt", clear.port(), TlsFiles::default()), &broker).await;
    assert!(contains(&clear.seen(), b"flat-12"), "the control must see it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_covers_nothing_or_a_ca_of_the_system_refuses_the_broker() {
    let (_broker, port) = broker(&tls("server"));
    let mut files = trusting("ca.pem");
    files.crl_file = Some(kit().join("stranger-crl.pem"));
    let story = story_of_failure(over("mqtts", port, files)).await;
    assert!(story.contains("no list in crl_file") && story.contains("stranger-crl.pem"), "{story}");
    // Where the system has no roots at all, that is what is said.
    let story = story_of_failure(over("mqtts", port, TlsFiles::default())).await;
    let expected = ["a CA that this system does not know", "install ca-certificates"];
    assert!(expected.iter().any(|words| story.contains(words)), "{story}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_without_tls_is_recognised_and_one_with_it_too() {
    let broker = Mosquitto::start();
    let story = story_of_failure(over("mqtts", broker.port(), trusting("ca.pem"))).await;
    assert!(story.contains("is that a listener without TLS"), "{story}");
    let mail = Tunnel::greeting(b"220 mail.example ESMTP ready\r\n").await;
    let story = story_of_failure(over("mqtts", mail.port(), trusting("ca.pem"))).await;
    assert!(story.contains("does not answer in TLS"), "{story}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_opens_the_door_with_a_key_in_any_form() {
    let (broker, port) = broker(&mutual());
    for (certificate, key) in [
        ("client.pem", "client.key"),
        ("client.pem", "client.pkcs8.key"),
        ("client-rsa.pem", "client-rsa.pkcs1.key"),
        ("client-rsa.pem", "client-rsa.pkcs8.key"),
    ] {
        let how = hundred_arrive(over("mqtts", port, showing(certificate, key)), &broker).await;
        assert!(how.unwrap().contains("TLS 1.3"), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_client_certificate_is_said_as_such_over_tls_1_3_and_1_2() {
    let (_newer, port_13) = broker(&mutual());
    let (_older, port_12) = broker_up_to(Some("TLSv1.2"), &mutual());
    let bad = |name: &str| showing(&format!("{name}.pem"), &format!("{name}.key"));
    let table = [
        (trusting("ca.pem"), "wants a client certificate: set cert_file and key_file"),
        (bad("client-expired"), "client-expired.pem) as expired"),
        (bad("client-revoked"), "client-revoked.pem) as revoked"),
        (bad("client-stranger"), "client-stranger.pem), whose CA it does not know"),
    ];
    for (files, words) in table {
        let story = story_of_failure(over("mqtts", port_12, files.clone())).await;
        assert!(story.contains(words), "over TLS 1.2: {story}");
        let mut device = Device::start(over("mqtts", port_13, files));
        let refused = device.wait_for(|n| matches!(n, Notice::ConnectionRefused { .. })).await;
        let told =
            matches!(&refused, Notice::ConnectionRefused { reason } if reason.contains(words));
        assert!(told, "over TLS 1.3: {refused:?}");
        let retrying = device.wait_for(|n| matches!(n, Notice::Retrying { .. })).await;
        let Notice::Retrying { message, .. } = retrying else { panic!() };
        println!("{message}");
        assert!(message.contains(words), "{message}");
        // It says nothing about the version of MQTT, so that must not change.
        assert!(!device.seen.iter().any(|n| matches!(n, Notice::ProtocolChanged { .. })));
    }
}

fn connector(files: TlsFiles) -> Connector {
    Connector::new(Settings { tls: files, ..Settings::default() }, Duration::from_secs(10))
}

#[test]
fn files_that_cannot_work_are_found_before_anything_is_connected() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.pem");
    fs::write(&empty, "nothing in here\n").unwrap();
    let file = |name: &str| Some(kit().join(name));
    let base = showing("client.pem", "client.key");
    let table = [
        (
            TlsFiles { ca_file: Some("/nowhere/ca.pem".into()), ..base.clone() },
            "ca_file: read /nowhere/ca.pem",
        ),
        (TlsFiles { ca_file: Some(empty.clone()), ..base.clone() }, "holds no certificate"),
        (TlsFiles { cert_file: Some(empty.clone()), ..base.clone() }, "cert_file: "),
        (TlsFiles { key_file: Some(empty.clone()), ..base.clone() }, "holds no private key"),
        (
            TlsFiles { key_file: file("client-new.key"), ..base.clone() },
            "does not belong to the certificate",
        ),
        (TlsFiles { key_file: file("client.locked.key"), ..base.clone() }, "is encrypted"),
        (TlsFiles { crl_file: Some(empty.clone()), ..base.clone() }, "holds no revocation list"),
    ];
    for (files, words) in table {
        let text = connector(files).check(true).unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
        assert_eq!(text.lines().count(), 1);
    }
    assert_eq!(connector(base).check(true), Ok(()));
}

/// The device's files in a directory of their own, to be exchanged while it runs.
struct Rotating {
    directory: tempfile::TempDir,
}

impl Rotating {
    fn new() -> Self {
        let rotating = Self { directory: tempfile::tempdir().unwrap() };
        rotating.put("client");
        fs::copy(kit().join("ca.pem"), rotating.path("ca")).unwrap();
        rotating
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, client: &str) {
        fs::copy(kit().join(format!("{client}.pem")), self.path("cert")).unwrap();
        fs::copy(kit().join(format!("{client}.key")), self.path("key")).unwrap();
    }

    fn files(&self) -> TlsFiles {
        TlsFiles {
            ca_file: Some(self.path("ca")),
            cert_file: Some(self.path("cert")),
            key_file: Some(self.path("key")),
            ..TlsFiles::default()
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_exchanged_without_a_restart_and_a_broken_one_changes_nothing() {
    let lines = mutual() + "use_identity_as_username true\n";
    let (mut broker, port) = broker(&lines);
    let files = Rotating::new();
    let mut device = Device::start(over("mqtts", port, files.files()));
    device.connected().await;
    let seen_as = |broker: &Mosquitto, name: &str| {
        let user = format!("u'{name}'");
        let log = broker.log();
        log.lines().rev().find(|l| l.contains("as flat-12")).is_some_and(|l| l.contains(&user))
    };
    wait_until("the broker logs", || seen_as(&broker, "client"));

    fs::write(files.path("key"), "half a ke").unwrap();
    broker.restart();
    let told = device.wait_for(|n| matches!(n, Notice::FilesUnusable { .. })).await;
    assert!(matches!(told, Notice::FilesUnusable { problem } if problem.starts_with("key_file: ")));
    device.connected().await;
    wait_until("the old one goes on", || seen_as(&broker, "client"));

    files.put("client-new");
    broker.restart();
    device.wait_for(|n| *n == Notice::FilesInForce).await;
    device.connected().await;
    wait_until("the new one is used", || seen_as(&broker, "client-new"));
    device.publish_all(0..100).await;
    let told = |n: &&Notice| matches!(n, Notice::FilesUnusable { .. });
    assert_eq!(device.seen.iter().filter(told).count(), 1, "told once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_password_is_used_by_the_next_connection() {
    let users = vec![("flat", "second")];
    let broker = Mosquitto::with(Options { users, ..Options::default() });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    fs::write(&file, "first\n").unwrap();
    let mut config = config(&broker.url(), Protocol::Auto);
    config.session.credentials =
        Some(Credentials { username: "flat".into(), password: b"first".to_vec() });
    config.password_file = Some(file.clone());
    let mut device = Device::start(config);
    device.wait_for(|n| matches!(n, Notice::ConnectionRefused { .. })).await;
    fs::write(&file, "second\n").unwrap();
    device.connected().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_tls_are_resumed_until_the_files_change() {
    let (_broker, port) = broker(&mutual());
    let files = Rotating::new();
    let wire = Tunnel::to(port).await;
    let mut device = Device::start(over("mqtts", wire.port(), files.files()));
    let mut next = async || {
        let reached = device.wait_for(|n| matches!(n, Notice::Reached { .. })).await;
        device.connected().await;
        // A ticket comes with the first bytes that the broker sends.
        device.publish_all([device.acknowledged.len() as u64]).await;
        wire.cut();
        matches!(reached, Notice::Reached { how } if how.contains("TLS 1.3, resumed"))
    };
    assert!(!next().await, "the first is made afresh");
    assert!(next().await, "the second is resumed");
    files.put("client-new");
    assert!(!next().await, "another certificate begins afresh");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alpn_is_sent_where_it_is_asked_for_and_a_mismatch_is_said() {
    let server = OpenSsl::start("server", &["-alpn", "x-amzn-mqtt-ca"]);
    let files = |alpn: &str| TlsFiles { alpn: alpn.into(), ..trusting("ca.pem") };
    assert!(connector(files("")).connect(&server.url("mqtts")).await.is_ok());
    assert!(connector(files("x-amzn-mqtt-ca")).connect(&server.url("mqtts")).await.is_ok());
    let refused = connector(files("mqtt")).connect(&server.url("mqtts")).await;
    let text = refused.err().unwrap().to_string();
    assert!(text.contains("does not speak `mqtt`, which alpn asks for"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_is_told_which_name_is_meant() {
    // It shows the right certificate only to whoever asks for the name.
    let kit = |name: &str| kit().join(name).display().to_string();
    let (cert, key) = (kit("server.pem"), kit("server.key"));
    let options = ["-servername", "localhost", "-cert2", &cert, "-key2", &key];
    let server = OpenSsl::start("server-other-host", &options);
    let connected = connector(trusting("ca.pem")).connect(&server.url("mqtts")).await;
    assert!(connected.is_ok(), "{:?}", connected.err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_at_another_path_or_none_is_said() {
    let (broker, port) = broker("protocol websockets");
    // mosquitto serves every path; a plain listener answers no upgrade.
    hundred_arrive(over("ws", port, TlsFiles::default()), &broker).await;
    let story = story_of_failure(over("ws", broker.port(), TlsFiles::default())).await;
    assert!(story.contains("does it listen for WebSocket there?"), "{story}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_carries_everything_and_its_refusal_is_said() {
    let (broker, port) = broker(&tls("server"));
    let directory = tempfile::tempdir().unwrap();
    let password = directory.path().join("proxy-password");
    fs::write(&password, "open sesame\n").unwrap();
    let proxy = Tunnel::http_proxy("ZmxhdDpvcGVuIHNlc2FtZQ==").await;
    let mut config = over("mqtts", port, trusting("ca.pem"));
    let with_user = |user: &str| format!("http://{user}127.0.0.1:{}", proxy.port()).parse().ok();
    config.transport.proxy = with_user("flat@");
    config.transport.proxy_password_file = Some(password);
    let how = hundred_arrive(config.clone(), &broker).await.unwrap();
    assert!(how.contains(&format!("proxy 127.0.0.1:{}, TLS 1.3", proxy.port())), "{how}");
    assert!(contains(&proxy.seen(), format!("CONNECT localhost:{port} HTTP/1.1").as_bytes()));
    config.transport.proxy = with_user("");
    let story = story_of_failure(config).await;
    assert!(
        story.contains("wants another login") && story.contains("proxy_password_file"),
        "{story}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_never_ends_is_cut_off_and_named() {
    let silent = Tunnel::greeting(b"").await;
    for (scheme, step) in [("mqtts", "TLS handshake"), ("ws", "WebSocket upgrade")] {
        let mut config = over(scheme, silent.port(), trusting("ca.pem"));
        config.connect_timeout = Duration::from_millis(200);
        let story = story_of_failure(config).await;
        assert!(story.contains(&format!("the {step} took longer than 200ms")), "{story}");
    }
    let mut config = over("mqtt", 1883, TlsFiles::default());
    config.transport.proxy = format!("http://127.0.0.1:{}", silent.port()).parse().ok();
    config.connect_timeout = Duration::from_millis(200);
    let story = story_of_failure(config).await;
    assert!(story.contains("the proxy's answer took longer than 200ms"), "{story}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_events_pass_through_every_layer_without_getting_stuck() {
    let (broker, port) = broker(&(tls("server") + "protocol websockets\n"));
    let subscriber = Subscriber::start(broker.port(), EVENTS);
    let mut device = Device::start(over("wss", port, trusting("ca.pem")));
    device.connected().await;
    let payload: Vec<u8> = (0..200_000u32).map(|n| (n % 253) as u8).collect();
    for token in 1..=30 {
        let event = Outgoing { payload: payload.clone().into(), ..outgoing(token) };
        device.outgoing.send(event).await.unwrap();
        device.wait_for(|n| matches!(n, Notice::Acknowledged { .. })).await;
    }
    let received = subscriber.wait_for("30 messages", |all| all.len() >= 30);
    assert!(received.iter().all(|message| message.payload == payload));
}

/// `openssl s_server`: what mosquitto cannot be told to be.
struct OpenSsl {
    port: u16,
    child: Child,
}

impl OpenSsl {
    fn start(certificate: &str, options: &[&str]) -> Self {
        let port = free_port();
        let child = Command::new("openssl")
            .args(["s_server", "-quiet", "-accept", &format!("127.0.0.1:{port}")])
            .arg("-cert")
            .arg(kit().join(format!("{certificate}.pem")))
            .arg("-key")
            .arg(kit().join(format!("{certificate}.key")))
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is installed");
        let server = Self { port, child };
        wait_until("openssl listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        server
    }

    fn url(&self, scheme: &str) -> hark::driver::net::BrokerUrl {
        format!("{scheme}://localhost:{}", self.port).parse().unwrap()
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
