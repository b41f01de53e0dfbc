//! `hark simulate`: the agent on a desktop, with a broker in the process, audio from a file and a home that is
//! lived in.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc};

use super::{Failure, config, exit, runtime};
use crate::agent::{self, Control, Happening, Parts};
use crate::clock::{Clock, ClockState};
use crate::config::{AudioInput, Config, Loaded, Origin, parse_duration};
use crate::driver::host;
use crate::sensor::button::Press;
use crate::sim::broker::{self, Broker};
use crate::sim::display::{Display, is_event_topic};
use crate::sim::home::Home;
use crate::sim::page::{self, Hands, Hub, Setting};
use crate::sim::relay;
use crate::sim::switches::{Fault, Switches};

/// Run the same process on a desktop: an embedded broker, audio from a file, no hardware
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A configuration to begin with; what it leaves open is simulated
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Speech to play in real time, WAV or FLAC; several are played one after the other
    #[arg(long, value_name = "FILE")]
    pub wav: Vec<PathBuf>,
    /// Publish to this broker instead of the embedded one
    #[arg(long, value_name = "URL")]
    pub broker: Option<String>,
    /// Let the simulated home live this many times as fast, from the early morning on
    #[arg(long, value_name = "FACTOR", value_parser = parse_speed)]
    pub speed: Option<f64>,
    /// Serve the page here: a port of this machine alone, or an address; "" for none [default: a free port]
    #[arg(long, value_name = "ADDR", value_parser = parse_listen)]
    pub listen: Option<Listen>,
    /// End by itself after this time, such as 20s
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    pub duration: Option<Duration>,
}

/// Where the page is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(Option<SocketAddr>);

fn parse_listen(text: &str) -> Result<Listen, String> {
    let port =
        |text: &str| text.parse().ok().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    match text {
        "" => Ok(Listen(None)),
        _ => match port(text).or_else(|| text.parse().ok()) {
            Some(address) => Ok(Listen(Some(address))),
            None => {
                Err("a port (8080), or an address with one (127.0.0.1:8080, [::1]:8080)".to_owned())
            }
        },
    }
}

/// What the device lives in.
struct World {
    broker: Option<Broker>,
    home: Option<Home>,
    switches: Switches,
    /// A recording.
    cry: PathBuf,
}

fn parse_speed(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(speed) if (1.0..=3600.0).contains(&speed) => Ok(speed),
        _ => Err("a number from 1 to 3600".to_owned()),
    }
}

/// Synthetic speech that we made; `src/sim/cry-for-help.md` says how.
const DEFAULT_RECORDING: &[u8] = include_bytes!("../sim/cry-for-help.flac");

/// Runs until Ctrl-C or for the time given, then drains.
///
/// # Errors
/// As `hark run`; also 69 if the embedded broker does not start.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let scratch = Scratch::new()?;
    let switches = Switches::default();
    let (broker, url) = match &args.broker {
        Some(url) => (None, url.clone()),
        None => {
            let failed = |e: &dyn std::fmt::Display| Failure::new(exit::UNAVAILABLE, e.to_string());
            let broker = broker::start().map_err(|e| failed(&e))?;
            let way = relay::start(broker.address, switches.clone());
            let way = way.map_err(|e| failed(&format!("start the way to the broker: {e}")))?;
            (Some(broker), format!("mqtt://{way}"))
        }
    };
    let recordings =
        if args.wav.is_empty() { vec![scratch.default_recording()?] } else { args.wav.clone() };
    let mut parts = Parts::device();
    let (loaded, home) = load(args, &url, &recordings, scratch.path(), &mut parts)?;
    for recording in recordings.into_iter().skip(1) {
        parts.encore.push(recording);
    }
    parts.disk_full = Some(Arc::clone(switches.switch(Fault::Disk)));
    let cry = scratch.default_recording()?;
    let world = World { broker, home, switches, cry };
    let outcome = runtime()?.block_on(simulate(args, loaded, world, parts));
    let waiting = outcome?;
    if waiting == 0 {
        scratch.remove();
    } else {
        println!(
            "{waiting} events were not delivered; they are kept in {}",
            scratch.path().display()
        );
    }
    Ok(())
}

/// The configuration, with everything that nobody set replaced by something that needs no hardware.
///
/// Where it has no sensor, a home is made for it, whose day goes by `parts.world`.
fn load(
    args: &Args,
    url: &str,
    recordings: &[PathBuf],
    scratch: &Path,
    parts: &mut Parts,
) -> Result<(Loaded, Option<Home>), Failure> {
    let (name, mut text) = match &args.config {
        None => ("simulator".to_owned(), String::new()),
        Some(file) => (file.display().to_string(), config::read(file)?),
    };
    let environment = || config::environment();
    let given = config::parse(&name, &text, environment())?;
    let open =
        |key: &str| given.settings.iter().any(|s| s.key == key && s.origin == Origin::Default);
    let in_scratch = |name: &str| scratch.join(name).display().to_string();
    let first =
        recordings.first().map(|file| format!("wav:{}", file.display())).unwrap_or_default();
    let simulated = [
        ("device.id", "HARK__DEVICE__ID", "simulated".to_owned(), false),
        ("audio.input", "HARK__AUDIO__INPUT", first, !args.wav.is_empty()),
        ("signal.tone", "HARK__SIGNAL__TONE", "none".to_owned(), false),
        ("outbox.path", "HARK__OUTBOX__PATH", in_scratch("outbox"), false),
        ("ingest.socket", "HARK__INGEST__SOCKET", in_scratch("ingest.sock"), false),
        ("ops.listen", "HARK__OPS__LISTEN", String::new(), false),
        ("uplink.url", "HARK__UPLINK__URL", url.to_owned(), args.broker.is_some()),
    ];
    let overrides = simulated
        .into_iter()
        .filter(|(key, _, _, forced)| *forced || open(key))
        // As a TOML string, so that a file called `3` stays a name.
        .map(|(_, variable, value, _)| (variable.to_owned(), format!("{value:?}")));
    let home = match given.config.sensors.is_empty() {
        true => Some(home(&given.config, args.speed.is_some(), scratch, parts)?),
        false => None,
    };
    if let Some(home) = &home {
        text.push('\n');
        text.push_str(&home.configuration());
    }
    let loaded = config::parse(&name, &text, environment().chain(overrides))?;
    if let Some(home) = &home {
        let file = agent::activity_file(&loaded.config.outbox.path);
        // Beside the outbox of a device nothing is made up.
        if file.starts_with(scratch) && !file.exists() {
            home.learn(&loaded.config.activity, &file, parts.clock.now()).map_err(failed)?;
        }
        if let Some(speed) = args.speed {
            // A made-up day has a clock that can be believed.
            let clock = Clock::new(|| ClockState::Synced);
            parts.world = clock.at_speed(home.begins_ms(), speed);
        }
    }
    Ok((loaded, home))
}

fn home(
    given: &Config,
    has_story: bool,
    scratch: &Path,
    parts: &mut Parts,
) -> Result<Home, Failure> {
    let zone = host::zone(&given.device.timezone)
        .map_err(|e| Failure::new(exit::CONFIG, format!("device.timezone: {e}")))?;
    let directory = scratch.join("home");
    Home::new(&directory, zone, parts.clock.wall(), &mut parts.rng, has_story).map_err(failed)
}

fn failed(error: std::io::Error) -> Failure {
    Failure::new(exit::IO, format!("make the simulated home: {error}"))
}

/// Returns how many events still wait.
async fn simulate(
    args: &Args,
    loaded: Loaded,
    world: World,
    mut parts: Parts,
) -> Result<u64, Failure> {
    let World { broker, home, switches, cry } = world;
    let (controls, typed) = mpsc::channel(8);
    parts.controls = Some(typed);
    let mut display = Display::new(std::io::stdout(), parts.clock);
    let hub = Hub::new(setting(args, &loaded, broker.is_some(), home.is_some()), parts.clock);
    let story = match home {
        Some(home) => home.live(parts.world, switches.clone()).map_err(failed)?,
        None => mpsc::channel(1).1,
    };
    introduce(&mut display, &loaded, broker.as_ref());
    let hears_files = matches!(loaded.config.audio, AudioInput::Wav(_));
    let hands = Hands {
        controls: controls.clone(),
        switches,
        encore: parts.encore.clone(),
        cry: hears_files.then_some(cry),
        care: broker.as_ref().map(|broker| broker.care.clone()),
    };
    let page = page(args.listen, &mut display, hub.clone(), hands).await?;
    keys(controls)?;
    let happenings = parts.happenings.subscribe();
    let stop = stop(args.duration)?;
    let watched = watch(display, &hub, happenings, broker, story);
    let agent = agent::run(loaded.config, parts, stop);
    // The agent drops the last sender of happenings when it ends; then the display is done too.
    let both = async { tokio::join!(agent, watched) };
    let (outcome, waiting) = tokio::select! {
        both = both => both,
        error = page => return Err(error),
    };
    outcome.map(|()| waiting)
}

fn setting(args: &Args, loaded: &Loaded, embedded: bool, home: bool) -> Setting {
    let config = &loaded.config;
    let made_up = |fault: &Fault| match fault {
        Fault::Mains | Fault::Sensor => home,
        Fault::Network => embedded,
        Fault::Disk => true,
    };
    Setting {
        device: config.device.id.clone().unwrap_or_default(),
        broker: if embedded { "embedded".to_owned() } else { config.uplink.url.clone() },
        speed: args.speed.filter(|_| home).unwrap_or(1.0),
        cancel_window: config.alarm.cancel_window,
        breakable: Fault::ALL.into_iter().filter(made_up).collect(),
        cries: matches!(config.audio, AudioInput::Wav(_)),
        cares: embedded && config.commands.enabled,
    }
}

/// Serves the page beside all else; what comes out is why it ended.
///
/// # Errors
/// 69: the port that was asked for is taken.
async fn page(
    listen: Option<Listen>,
    display: &mut Display<std::io::Stdout>,
    hub: Hub,
    hands: Hands,
) -> Result<impl Future<Output = Failure> + use<>, Failure> {
    let Listen(address) = listen.unwrap_or(Listen(Some((Ipv4Addr::LOCALHOST, 0).into())));
    let unavailable = |what: &str, e: &std::io::Error| {
        Failure::new(exit::UNAVAILABLE, format!("{what}: {e}; another port: --listen PORT"))
    };
    let listener = match address {
        None => None,
        Some(address) => {
            let bound = page::bind(address).await;
            let bound =
                bound.map_err(|e| unavailable(&format!("serve the page on {address}"), &e))?;
            let local = bound.local_addr().map_err(|e| unavailable("serve the page", &e))?;
            display.line("page", &format!("http://{local}/"));
            Some(bound)
        }
    };
    Ok(async move {
        let Some(listener) = listener else { return std::future::pending().await };
        match page::serve(listener, hub, hands).await {
            Err(error) => unavailable("serve the page", &error),
            Ok(()) => Failure::new(exit::UNAVAILABLE, "the page is no longer served".to_owned()),
        }
    })
}

/// What is typed, a line each: the device's button.
fn keys(controls: mpsc::Sender<Control>) -> Result<(), Failure> {
    let read = move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let control = match line.trim() {
                "b" => Control::Press(Press::Short),
                "l" => Control::Press(Press::Long),
                "t" => Control::Press(Press::Hold),
                "c" => Control::Cancel,
                _ => continue,
            };
            if controls.blocking_send(control).is_err() {
                return;
            }
        }
    };
    // It waits for a line in the system and cannot be told to end; it ends with the process.
    let thread = std::thread::Builder::new().name("keys".to_owned()).spawn(read);
    thread.map(drop).map_err(|e| Failure::new(exit::UNAVAILABLE, format!("start thread keys: {e}")))
}

fn introduce(display: &mut Display<std::io::Stdout>, loaded: &Loaded, embedded: Option<&Broker>) {
    let of = |key: &str| {
        let found = loaded.settings.iter().find(|s| s.key == key);
        found.map_or("", |s| s.value.trim_matches('"')).to_owned()
    };
    let broker = match embedded {
        Some(broker) => format!("mqtt://{} (embedded)", broker.address),
        None => of("uplink.url"),
    };
    display.line("broker", &broker);
    display.line("outbox", &of("outbox.path"));
    display.line("keys", "b button, l long press, t test alarm, c cancel; each with Enter");
    display
        .line("socket", &format!("{} (hand events in: hark emit --socket …)", of("ingest.socket")));
}

fn stop(duration: Option<Duration>) -> Result<impl Future<Output = &'static str>, Failure> {
    let (signals, mut terminal_gone) = agent::signals()?;
    let over = async move {
        match duration {
            None => std::future::pending().await,
            Some(duration) => tokio::time::sleep(duration).await,
        }
    };
    Ok(async move {
        tokio::select! {
            signal = signals => signal,
            _ = terminal_gone.recv() => "SIGHUP",
            () = over => "the time given is over",
        }
    })
}

async fn watch(
    mut display: Display<std::io::Stdout>,
    hub: &Hub,
    mut happenings: broadcast::Receiver<Happening>,
    broker: Option<Broker>,
    mut story: mpsc::Receiver<String>,
) -> u64 {
    let (nobody, silence) = mpsc::channel(1);
    let mut arrivals = broker.map_or(silence, |broker| broker.arrivals);
    loop {
        tokio::select! {
            happening = happenings.recv() => match happening {
                Ok(happening) => {
                    display.show(&happening);
                    hub.note(&happening);
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => display.missed(missed),
                Err(broadcast::error::RecvError::Closed) => break,
            },
            Some(line) = story.recv() => {
                display.line("home", &line);
                hub.note_home(&line);
            }
            Some(arrival) = arrivals.recv() => if is_event_topic(&arrival.topic) {
                display.line("at broker", &format!("{} ({} bytes)", arrival.topic, arrival.bytes));
                hub.note_arrival(&arrival);
            }
        }
    }
    drop(nobody);
    display.finish();
    display.totals().waiting
}

/// A directory of this run's own, removed when everything was delivered.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("hark-simulate-{}", std::process::id()));
        std::fs::create_dir_all(&path)
            .map_err(|e| Failure::new(exit::IO, format!("create {}: {e}", path.display())))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn default_recording(&self) -> Result<PathBuf, Failure> {
        let file = self.0.join("cry-for-help.flac");
        std::fs::write(&file, DEFAULT_RECORDING)
            .map_err(|e| Failure::new(exit::IO, format!("write {}: {e}", file.display())))?;
        Ok(file)
    }

    fn remove(self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!("remove {}: {error}", self.0.display());
        }
    }
}
