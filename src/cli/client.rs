//! A running agent, spoken to over its socket.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{Failure, exit};

/// A connection to the agent's ingest socket.
pub(super) struct Agent {
    sender: SendRequest<Full<Bytes>>,
    socket: PathBuf,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
}

impl ConnectError {
    /// Whether nobody listens there.
    pub(super) fn is_absence(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::Socket(e) if matches!(e.kind(), NotFound | ConnectionRefused))
    }

    pub(super) fn failure(&self, socket: &Path) -> Failure {
        let advice = match self {
            Self::Socket(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                "become a member of its group, or root"
            }
            _ => "is `hark run` up?",
        };
        let message = format!("no agent listens on {}: {self}; {advice}", socket.display());
        Failure::new(exit::UNAVAILABLE, message)
    }
}

impl Agent {
    pub(super) async fn connect(socket: &Path) -> Result<Self, ConnectError> {
        let stream = UnixStream::connect(socket).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        #[allow(
            clippy::disallowed_methods,
            reason = "hyper wants its connection driven beside the requests; it ends with this command"
        )]
        tokio::spawn(connection);
        Ok(Self { sender, socket: socket.to_owned() })
    }

    pub(super) async fn get(&mut self, path: &str) -> Result<Bytes, Failure> {
        let request = Request::get(format!("http://hark{path}")).header(header::HOST, "hark");
        let request = request.body(Full::default()).map_err(|e| self.unavailable(&e))?;
        self.answer(request).await
    }

    pub(super) async fn post(
        &mut self,
        path: &str,
        media_type: &str,
        body: Vec<u8>,
    ) -> Result<Bytes, Failure> {
        let request = Request::post(format!("http://hark{path}"))
            .header(header::HOST, "hark")
            .header(header::CONTENT_TYPE, media_type)
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| self.unavailable(&e))?;
        self.answer(request).await
    }

    /// The body of a 2xx; anything else is a failure.
    async fn answer(&mut self, request: Request<Full<Bytes>>) -> Result<Bytes, Failure> {
        self.sender.ready().await.map_err(|e| self.unavailable(&e))?;
        let response = self.sender.send_request(request).await;
        let response = response.map_err(|e| self.unavailable(&e))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|e| self.unavailable(&e))?;
        let body = body.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail = problem["detail"].as_str().unwrap_or("no reason given");
        let code = if status.is_client_error() { exit::IO } else { exit::UNAVAILABLE };
        Err(Failure::new(code, format!("the agent refused ({status}): {detail}")))
    }

    /// Reads an answer.
    pub(super) fn understand<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(body).map_err(|e| self.unavailable(&e))
    }

    fn unavailable(&self, what: &dyn std::fmt::Display) -> Failure {
        let message = format!("the agent on {}: {what}", self.socket.display());
        Failure::new(exit::UNAVAILABLE, message)
    }
}
