//! The socket where other programs hand events in: the CloudEvents HTTP binding on a Unix socket.
//!
//! `POST /events`: one event in structured mode (`application/cloudevents+json`) or in binary mode
//! (attributes in headers `ce-…`), or a batch (`application/cloudevents-batch+json`, whole or not at
//! all). 202 means that every event of the
//! request is on stable storage; nothing else does. Refusals are `application/problem+json`
//! (RFC 9457) and name the `attribute` at fault.
//!
//! The same socket serves the outbox to `hark outbox` (`outbox_http`).
//!
//! Bounds: [`MAX_BODY_BYTES`] a request, [`MAX_BATCH`] events in it, [`MAX_EVENT_BYTES`] each,
//! [`MAX_REQUESTS`] at once, [`BODY_DEADLINE`] to send it.
//!
//! A route decides by type which lane an event takes, and whether it makes an alarm; then 202 also means
//! that the alarm is on stable storage.
//!
//! Absent: who may write, which is the file mode's matter.
//!
//! Source: CloudEvents HTTP Protocol Binding 1.0.2 §3.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::ops;
use super::outbox_admin::Admin;
use super::outbox_http;
use super::outbox_writer::OutboxHandle;
use crate::event::{Event, EventError, Lane, MAX_EVENT_BYTES, http as binary, json as format};
use crate::outbox::{Accepted, event_bytes, sequence_text};

/// The largest request body, in bytes.
pub const MAX_BODY_BYTES: usize = 1 << 20;
/// The most events in one batch: they share one commit.
pub const MAX_BATCH: usize = 256;
/// The same where one of them makes an alarm, whose events share the commit.
pub const MAX_ALARM_BATCH: usize = MAX_BATCH - 16;
/// Requests served at the same time; one more is told to come again.
pub const MAX_REQUESTS: usize = 32;
/// How long a client may take to send its body.
pub const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// What becomes of events of a type; the first route that fits counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The type, or how it begins.
    pub pattern: String,
    /// It is only the beginning.
    pub is_prefix: bool,
    /// The lane, whatever the event asks for.
    pub lane: Option<Lane>,
    /// Such an event makes an alarm.
    pub alarm: bool,
}

impl Route {
    fn fits(&self, event_type: &str) -> bool {
        if self.is_prefix {
            event_type.starts_with(&self.pattern)
        } else {
            event_type == self.pattern
        }
    }
}

/// Events of one request, of which some are to make an alarm: all of that is one commit.
#[derive(Debug)]
pub struct Alarming {
    /// All of them, each in its lane.
    pub events: Vec<(Lane, Event)>,
    /// Those that are to make an alarm.
    pub triggers: Vec<Trigger>,
    /// For the word that events and alarm are on stable storage.
    pub done: oneshot::Sender<Result<Vec<Accepted>, String>>,
}

/// An event that is to make an alarm.
#[derive(Debug)]
pub struct Trigger {
    /// Its `id`.
    pub id: String,
    /// Its `type`.
    pub event_type: String,
    /// It says that it is only a test.
    pub test: bool,
}

/// Where events go.
#[derive(Debug, Clone)]
pub struct Targets {
    /// All of them.
    pub outbox: OutboxHandle,
    /// In the order of the configuration; they may change while events come.
    pub routes: watch::Receiver<Vec<Route>>,
    /// Those that are to make an alarm.
    pub alarms: mpsc::Sender<Alarming>,
}

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// Somebody answers on the socket already.
    #[error("ingest socket {0}: another program is listening there; is hark running already?")]
    InUse(PathBuf),
    /// The socket cannot be made.
    #[error("ingest socket {0}: {1}; its directory must be writable for hark")]
    Bind(PathBuf, #[source] io::Error),
}

/// What the socket gives access to.
#[derive(Debug, Clone)]
pub struct Services {
    /// Where events go.
    pub targets: Targets,
    /// For `hark outbox`.
    pub admin: Admin,
    /// For `hark status`.
    pub status: ops::Source,
}

/// Binds the socket, replacing one that a dead process left behind. Mode 0660.
///
/// # Errors
/// See [`IngestError`].
pub async fn bind(path: &Path) -> Result<UnixListener, IngestError> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(IngestError::InUse(path.to_owned()));
    }
    let failed = |error| IngestError::Bind(path.to_owned(), error);
    // Sockets live on a tmpfs that is empty after each boot; systemd makes the directory, a shell does not.
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

/// Serves until `stop` becomes true and the requests under way are answered.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: UnixListener,
    services: Services,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let Services { targets, admin, status } = services;
    let shared = Arc::new(Shared { targets, slots: Semaphore::new(MAX_REQUESTS) });
    let router = Router::new().route("/events", post(events)).with_state(shared);
    let router = router.merge(outbox_http::router(admin)).merge(ops::status_router(status));
    let stopped = async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    axum::serve(listener, router).with_graceful_shutdown(stopped).await
}

struct Shared {
    targets: Targets,
    slots: Semaphore,
}

async fn events(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let Ok(_slot) = shared.slots.try_acquire() else {
        return Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!("{MAX_REQUESTS} requests are being served; come again"),
        )
        .into_response();
    };
    match accept(&shared.targets, request).await {
        Ok(accepted) => accepted,
        Err(problem) => problem.into_response(),
    }
}

async fn accept(targets: &Targets, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let media_type = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let mode = mode(media_type.unwrap_or_default(), parts.headers.contains_key(binary::MARK))?;
    let body = read(body).await?;
    let headers = parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let events = match mode {
        Mode::Structured => vec![format::parse(&body)?],
        Mode::Batch => format::parse_batch(&body)?,
        Mode::Binary => vec![binary::parse(media_type, headers, &body)?],
    };
    if events.len() > MAX_BATCH {
        let detail = format!("{} events in the batch; at most {MAX_BATCH}", events.len());
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
    }
    let routed = events.into_iter().map(|event| targets.route(event));
    let routed = routed.collect::<Result<Vec<_>, _>>()?;
    let triggers: Vec<_> =
        routed.iter().filter(|(_, _, alarm)| *alarm).map(|(_, event, _)| trigger(event)).collect();
    let events: Vec<_> = routed.into_iter().map(|(lane, event, _)| (lane, event)).collect();
    let unavailable = |e: String| Problem::new(StatusCode::SERVICE_UNAVAILABLE, e);
    let accepted = if triggers.is_empty() {
        targets.outbox.append(events).await.map_err(|e| unavailable(e.to_string()))?
    } else if events.len() > MAX_ALARM_BATCH {
        let detail = format!(
            "{} events in the batch; at most {MAX_ALARM_BATCH} where one makes an alarm",
            events.len()
        );
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
    } else {
        targets.alarm(events, triggers).await.map_err(unavailable)?
    };
    let accepted: Vec<_> = accepted
        .iter()
        .map(|a| json!({ "id": a.id, "lane": a.lane.as_str(), "sequence": sequence_text(a.sequence) }))
        .collect();
    Ok(answer(StatusCode::ACCEPTED, "application/json", &json!({ "accepted": accepted })))
}

enum Mode {
    Structured,
    Batch,
    Binary,
}

/// How the event stands in the request; parameters such as `charset` are passed over.
fn mode(media_type: &str, marked: bool) -> Result<Mode, Problem> {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        format::MEDIA_TYPE => Ok(Mode::Structured),
        format::BATCH_MEDIA_TYPE => Ok(Mode::Batch),
        other if marked && !other.starts_with("application/cloudevents") => Ok(Mode::Binary),
        other => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!(
                "content type `{other}`; send {} or {}, or the attributes in headers (ce-specversion …)",
                format::MEDIA_TYPE,
                format::BATCH_MEDIA_TYPE
            ),
        )),
    }
}

pub(super) async fn read(body: Body) -> Result<Bytes, Problem> {
    match tokio::time::timeout(BODY_DEADLINE, axum::body::to_bytes(body, MAX_BODY_BYTES)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error))
            if std::error::Error::source(&error)
                .is_some_and(|e| e.is::<http_body_util::LengthLimitError>()) =>
        {
            let detail = format!("the body is larger than {MAX_BODY_BYTES} bytes");
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail))
        }
        Ok(Err(error)) => Err(Problem::new(StatusCode::BAD_REQUEST, format!("read body: {error}"))),
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not come within {} s", BODY_DEADLINE.as_secs()),
        )),
    }
}

fn trigger(event: &Event) -> Trigger {
    let test = event.attribute("testalarm").is_some_and(|value| value.to_string() == "true");
    Trigger { id: event.id().to_owned(), event_type: event.event_type().to_owned(), test }
}

impl Targets {
    /// Whether it makes an alarm, and its lane: what a route says, `alert` for what makes an alarm, what
    /// the event itself asks for, telemetry.
    fn route(&self, event: Event) -> Result<(Lane, Event, bool), Problem> {
        let routes = self.routes.borrow();
        let route = routes.iter().find(|route| route.fits(event.event_type()));
        let alarm = route.is_some_and(|route| route.alarm);
        let (asked, event) = in_lane(event)?;
        let otherwise = if alarm { Lane::Alert } else { asked };
        Ok((route.and_then(|route| route.lane).unwrap_or(otherwise), event, alarm))
    }

    async fn alarm(
        &self,
        events: Vec<(Lane, Event)>,
        triggers: Vec<Trigger>,
    ) -> Result<Vec<Accepted>, String> {
        let (done, answer) = oneshot::channel();
        let ends = |_| "hark is shutting down: hand the event in again".to_owned();
        let alarming = Alarming { events, triggers, done };
        self.alarms.send(alarming).await.map_err(|e| ends(e.to_string()))?;
        answer.await.map_err(|e| ends(e.to_string()))?
    }
}

/// The lane that the event asks for, telemetry if it asks for none.
fn in_lane(event: Event) -> Result<(Lane, Event), Problem> {
    let size = event_bytes(&event);
    if size > MAX_EVENT_BYTES {
        let detail = format!("event `{}` has {size} bytes; at most {MAX_EVENT_BYTES}", event.id());
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
    }
    let lane = match event.attribute("lane") {
        None => Lane::Telemetry,
        Some(value) => Lane::from_str(&value.to_string()).map_err(|e| EventError {
            attribute: "lane".to_owned(),
            problem: format!("asks for a lane: {e}"),
        })?,
    };
    Ok((lane, event))
}

/// A refusal (RFC 9457).
pub(super) struct Problem {
    status: StatusCode,
    attribute: Option<String>,
    detail: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, attribute: None, detail: detail.into() }
    }
}

impl From<EventError> for Problem {
    fn from(error: EventError) -> Self {
        let detail = error.to_string();
        let attribute = Some(error.attribute).filter(|name| !name.is_empty());
        Self { status: StatusCode::BAD_REQUEST, attribute, detail }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "title": self.status.canonical_reason().unwrap_or("refused"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Some(attribute) = self.attribute {
            body["attribute"] = attribute.into();
        }
        answer(self.status, "application/problem+json", &body)
    }
}

fn answer(status: StatusCode, media_type: &'static str, body: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, media_type)], body.to_string()).into_response()
}
