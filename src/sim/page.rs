//! The page of `hark simulate`: what happens, as it happens, and what somebody in the home can do.
//!
//! Plain HTML, style and script, embedded; nothing is fetched from elsewhere. State and happenings come as
//! server-sent events: each message is the whole state and, where something happened, a line of the story.
//!
//! # Invariants
//! - No foreign web page can press a button. A request must name this server by a number or as `localhost` (a
//!   name could be pointed here by anybody), one that does something must have no other origin than this page and
//!   carry JSON, which a browser sends nowhere else without asking first.
//! - A page that reads too slowly is told how much it missed; nobody waits for it.
//!
//! | | |
//! |---|---|
//! | `GET /`, `/style.css`, `/page.js` | the page |
//! | `GET /events` | the stream |
//! | `POST /do` | `{"do": "press", "press": "short"}`, `"long"`, `"hold"`; `cancel`; `cry`; `{"do": "fault", "fault": "mains", "on": true}`, `network`, `disk`, `sensor`; `{"do": "command", "command": "acknowledge"}`, `resolve` |
//!
//! Absent: a login; it is for the machine on which it runs.

mod hub;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};

use super::broker::Care;
use super::switches::{Fault, Switches};
use crate::agent::{Control, Encore};
use crate::sensor::button::Press;
pub use hub::{Hub, Setting};

/// A request that does something is smaller.
const MAX_BODY: usize = 1024;
const CALM: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                    img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the page can do.
#[derive(Debug, Clone)]
pub struct Hands {
    /// Presses the button.
    pub controls: mpsc::Sender<Control>,
    /// Breaks and mends.
    pub switches: Switches,
    /// Plays a recording after what plays now.
    pub encore: Encore,
    /// The recording of a cry; `None` where the device listens to something else.
    pub cry: Option<PathBuf>,
    /// Speaks for the care side; `None` with a broker of one's own.
    pub care: Option<Care>,
}

#[derive(Clone)]
struct Shared {
    hub: Hub,
    hands: Hands,
}

/// Listens.
///
/// # Errors
/// The port is taken, or the address not this machine's.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves for ever; dropped, it ends with all connections.
///
/// # Errors
/// The listener failed.
pub async fn serve(listener: TcpListener, hub: Hub, hands: Hands) -> io::Result<()> {
    let file = |media_type: &'static str, text: &'static str| {
        get(async move || ([(header::CONTENT_TYPE, media_type)], text))
    };
    let router = Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("page/index.html")))
        .route("/style.css", file("text/css; charset=utf-8", include_str!("page/style.css")))
        .route("/page.js", file("text/javascript; charset=utf-8", include_str!("page/page.js")))
        .route("/events", get(events))
        .route("/do", post(act))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(guard))
        .with_state(Shared { hub, hands });
    axum::serve(listener, router).await
}

/// Lets in whoever means this server, and nobody who was sent by another page.
async fn guard(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = text(headers, header::HOST).unwrap_or_default();
    if !is_address(host) {
        let problem = format!("name this server by its number or as localhost, not as `{host}`");
        return refuse(StatusCode::FORBIDDEN, &problem);
    }
    let from_elsewhere = text(headers, header::ORIGIN)
        .is_some_and(|origin| origin.strip_prefix("http://") != Some(host))
        || text(headers, HeaderName::from_static("sec-fetch-site"))
            .is_some_and(|site| !matches!(site, "same-origin" | "none"));
    // A link from elsewhere may show the page; only the page itself reads the stream and does something.
    if from_elsewhere && request.uri().path() != "/" {
        return refuse(StatusCode::FORBIDDEN, "only the page of this server may ask for that");
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CALM),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    response
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// An IP address or `localhost`, with a port or without.
fn is_address(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok()
}

fn refuse(status: StatusCode, problem: &str) -> Response {
    let body =
        json!({ "title": status.canonical_reason(), "status": status.as_u16(), "detail": problem });
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

/// The story until now, and then what happens.
async fn events(State(Shared { hub, .. }): State<Shared>) -> impl IntoResponse {
    let (begin, news) = hub.join();
    let begin = (Some(begin), news);
    let messages = stream::unfold(begin, |(begin, mut news)| async move {
        if let Some(begin) = begin {
            return Some((message(begin), (None, news)));
        }
        let text = match news.recv().await {
            Ok(text) => text.to_string(),
            Err(broadcast::error::RecvError::Lagged(count)) => {
                json!({ "missed": count }).to_string()
            }
            Err(broadcast::error::RecvError::Closed) => return None,
        };
        Some((message(text), (None, news)))
    });
    Sse::new(messages).keep_alive(KeepAlive::default())
}

fn message(text: String) -> Result<Message, Infallible> {
    Ok(Message::default().data(text))
}

#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
enum Deed {
    Press { press: String },
    Cancel,
    Cry,
    Fault { fault: String, on: bool },
    Command { command: String },
}

async fn act(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    if text(&headers, header::CONTENT_TYPE) != Some("application/json") {
        let problem = "the body must be application/json";
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, problem);
    }
    let deed = match serde_json::from_slice(&body) {
        Ok(deed) => deed,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match done(&shared, deed).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(problem) => refuse(StatusCode::BAD_REQUEST, &problem),
    }
}

/// # Errors
/// One line: why not.
async fn done(Shared { hub, hands }: &Shared, deed: Deed) -> Result<(), String> {
    let press =
        async |control| hands.controls.send(control).await.map_err(|_| "hark ends".to_owned());
    match deed {
        Deed::Press { press: name } => {
            let kinds = [Press::Short, Press::Medium, Press::Long, Press::Hold];
            let kind = kinds.into_iter().find(|kind| kind.as_str() == name);
            press(Control::Press(kind.ok_or_else(|| format!("there is no press `{name}`"))?)).await
        }
        Deed::Cancel => press(Control::Cancel).await,
        Deed::Cry => {
            let cry = hands.cry.clone().ok_or("the device listens to something else")?;
            let taken = hands.encore.push(cry);
            taken.then_some(()).ok_or_else(|| "too many cries wait to be heard".to_owned())
        }
        Deed::Fault { fault, on } => {
            let named = Fault::ALL.into_iter().find(|known| known.as_str() == fault);
            let fault = named.filter(|fault| hub.can_break(*fault));
            let fault = fault.ok_or("there is no such thing to break here")?;
            hands.switches.set(fault, on);
            hub.note_switch(fault, on);
            Ok(())
        }
        Deed::Command { command } => {
            let care = hands.care.as_ref().ok_or("the broker is not the simulator's")?;
            match command.as_str() {
                "acknowledge" | "resolve" => {
                    care.command(hub.device(), &format!("alarm.{command}"))
                }
                _ => Err(format!("there is no command `{command}`")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_number_or_localhost_and_never_another_name() {
        for host in ["127.0.0.1:8080", "127.0.0.1", "localhost:1", "[::1]:8080", "192.168.1.4:80"] {
            assert!(is_address(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "[x]:1",
            "127.0.0.1.evil:1",
        ] {
            assert!(!is_address(host), "{host}");
        }
    }
}
