//! `/metrics`, `/healthz` and `/readyz` over HTTP, for whoever watches over the device; `/status` on
//! the ingest socket.
//!
//! A port that cannot be bound, since another program has it, must not keep the device from alarming:
//! the caller raises a fault and tries again.
//!
//! Absent: authentication and TLS. It listens on the loopback interface unless the operator says
//! otherwise, and says nothing that is secret.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::status::Status;

/// Gives a fresh status; must not block.
#[derive(Clone)]
pub struct Source(Arc<dyn Fn() -> Status + Send + Sync>);

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Source")
    }
}

impl Source {
    /// Asks `status` each time.
    pub fn new(status: impl Fn() -> Status + Send + Sync + 'static) -> Self {
        Self(Arc::new(status))
    }
}

/// # Errors
/// Another program has the port, or the address is not this machine's.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until `stop` becomes true.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    source: Source,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let stopped = async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    axum::serve(listener, router(source)).with_graceful_shutdown(stopped).await
}

fn router(source: Source) -> Router {
    let (metrics, health, ready) = (source.clone(), source.clone(), source);
    Router::new()
        .route(
            "/metrics",
            get(async move || {
                let media_type = "text/plain; version=0.0.4; charset=utf-8";
                ([(header::CONTENT_TYPE, media_type)], metrics.0().to_metrics())
            }),
        )
        .route(
            "/healthz",
            get(async move || {
                let status = health.0();
                verdict(status.healthy, &status)
            }),
        )
        .route(
            "/readyz",
            get(async move || {
                let status = ready.0();
                verdict(status.ready, &status)
            }),
        )
}

/// 200, or 503 with what is wrong, a part a line.
fn verdict(well: bool, status: &Status) -> Response {
    if well {
        return (StatusCode::OK, "well\n").into_response();
    }
    let mut text = String::new();
    if !status.uplink.connected {
        text += &format!("uplink: not connected: {}\n", status.uplink.news);
    }
    if status.audio.as_ref().is_some_and(|audio| audio.level_dbfs.is_none()) {
        text += "audio: no sound has come yet\n";
    }
    for fault in &status.faults {
        text += &format!("{}: {}\n", fault.part, fault.problem);
    }
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

/// `GET /status`: the whole status as JSON.
pub fn status_router(source: Source) -> Router {
    Router::new().route(
        "/status",
        get(async move || {
            ([(header::CONTENT_TYPE, "application/json")], source.0().to_value().to_string())
        }),
    )
}
