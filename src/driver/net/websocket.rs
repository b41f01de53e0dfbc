//! MQTT inside WebSocket (RFC 6455; MQTT 5 §6): the upgrade, and frames made to look like a stream.
//!
//! MQTT's packets and WebSocket's frames need not coincide: what is written leaves in binary frames of
//! at most [`WRITE_MAX`] bytes, what arrives is handed on as it comes. Pings are answered by the
//! library below. A text frame ends the connection, as MQTT 5 §6.0 demands.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message, error::ProtocolError};

use super::url::Scheme;
use super::{BrokerUrl, ConnectError, Stream, WRITE_MAX};

/// The name of the protocol inside (MQTT 5 §6.0).
const SUBPROTOCOL: &str = "mqtt";
/// The longest message that is taken: an MQTT packet of the largest size that a session takes,
/// even if the broker puts several into one frame.
const MESSAGE_MAX: usize = 1024 * 1024;
/// For reading; the default is 128 KiB.
const READ_BYTES: usize = 8 * 1024;

/// The upgrade over a stream that stands.
pub(super) async fn connect(
    url: &BrokerUrl,
    stream: Box<dyn Stream>,
) -> Result<Framed, ConnectError> {
    let scheme = if url.scheme == Scheme::Wss { "wss" } else { "ws" };
    let address = format!("{scheme}://{}{}", url.address(), url.path);
    let bad = |error: Error| {
        ConnectError::WebSocket(format!("cannot be asked for the path `{}`: {error}", url.path))
    };
    let mut request = address.into_client_request().map_err(bad)?;
    let name = HeaderValue::from_static(SUBPROTOCOL);
    request.headers_mut().insert("Sec-WebSocket-Protocol", name);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * WRITE_MAX)
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX));
    let upgraded = tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await;
    match upgraded {
        Ok((inner, _)) => Ok(Framed { inner, arrived: Bytes::new() }),
        Err(error) => Err(ConnectError::WebSocket(failed(&error, &url.path))),
    }
}

fn failed(error: &Error, path: &str) -> String {
    match error {
        Error::Http(response) => {
            let status = response.status();
            match status.as_u16() {
                404 => format!("has no WebSocket at the path {path} ({status}): correct the URL"),
                401 | 403 => format!("refused the WebSocket at the path {path} ({status})"),
                _ => {
                    format!("answered the WebSocket upgrade with {status}: is {path} MQTT's path?")
                }
            }
        }
        Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => {
            format!("has a WebSocket at the path {path} that is not MQTT's: correct the URL")
        }
        Error::Io(error) => match super::refusal(error) {
            Some(text) => text,
            None => format!(
                "closed the connection in the WebSocket upgrade ({error}): does it listen for WebSocket there?"
            ),
        },
        other => format!(
            "did not answer the WebSocket upgrade ({other}): does it listen for WebSocket there?"
        ),
    }
}

/// A WebSocket as a stream of bytes.
pub(super) struct Framed {
    inner: WebSocketStream<Box<dyn Stream>>,
    /// Of the last message: what was not handed on yet.
    arrived: Bytes,
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

impl AsyncRead for Framed {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.arrived.is_empty() {
            match ready!(Pin::new(&mut this.inner).poll_next(cx)) {
                None
                | Some(Ok(Message::Close(_)))
                | Some(Err(Error::ConnectionClosed | Error::AlreadyClosed))
                | Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Ok(Message::Binary(bytes))) => this.arrived = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    let text = "broker sent text over the WebSocket, where MQTT is binary";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let piece = this.arrived.len().min(buf.remaining());
        buf.put_slice(&this.arrived[..piece]);
        this.arrived.advance(piece);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Framed {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // The frame before goes out first, so that no queue builds up inside the library.
        ready!(Pin::new(&mut this.inner).poll_flush(cx)).map_err(broken)?;
        let piece = &buf[..buf.len().min(WRITE_MAX)];
        let frame = Message::Binary(Bytes::copy_from_slice(piece));
        Pin::new(&mut this.inner).start_send(frame).map_err(broken)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.get_mut().inner).poll_close(cx)) {
            Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(broken(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

    use super::*;

    fn url(path: &str) -> BrokerUrl {
        format!("ws://broker{path}").parse().unwrap()
    }

    /// A device's stream and the broker's end of the WebSocket.
    async fn pair() -> (Framed, WebSocketStream<tokio::io::DuplexStream>) {
        let (device, broker) = tokio::io::duplex(64 * 1024);
        #[allow(clippy::result_large_err, reason = "the library's signature")]
        let agree = |request: &Request, mut response: Response| {
            assert_eq!(request.uri().path(), "/mqtt");
            assert_eq!(request.headers()["Sec-WebSocket-Protocol"], SUBPROTOCOL);
            let name = HeaderValue::from_static(SUBPROTOCOL);
            response.headers_mut().insert("Sec-WebSocket-Protocol", name);
            Ok(response)
        };
        let url = url("");
        let (device, broker) = tokio::join!(
            connect(&url, Box::new(device)),
            tokio_tungstenite::accept_hdr_async(broker, agree)
        );
        (device.unwrap(), broker.unwrap())
    }

    #[tokio::test]
    async fn bytes_arrive_in_order_however_they_are_framed() {
        let (mut device, mut broker) = pair().await;
        let sent: Vec<u8> = (0..10_000u32).map(|n| (n % 251) as u8).collect();
        device.write_all(&sent).await.unwrap();
        device.flush().await.unwrap();
        let mut got = Vec::new();
        while got.len() < sent.len() {
            let Message::Binary(frame) = broker.next().await.unwrap().unwrap() else {
                panic!("not binary")
            };
            assert!(frame.len() <= WRITE_MAX);
            got.extend_from_slice(&frame);
        }
        assert_eq!(got, sent);

        for piece in sent.chunks(7) {
            broker.send(Message::Binary(Bytes::copy_from_slice(piece))).await.unwrap();
            broker.send(Message::Ping(Bytes::new())).await.unwrap();
        }
        let mut got = vec![0; sent.len()];
        device.read_exact(&mut got).await.unwrap();
        assert_eq!(got, sent);
        broker.close(None).await.unwrap();
        assert_eq!(device.read(&mut got).await.unwrap(), 0, "a close is the end");
    }

    #[tokio::test]
    async fn a_text_frame_is_an_error() {
        let (mut device, mut broker) = pair().await;
        broker.send(Message::Text("hello".into())).await.unwrap();
        let error = device.read_u8().await.unwrap_err();
        assert!(error.to_string().contains("binary"), "{error}");
    }

    #[tokio::test]
    async fn a_listener_that_is_none_is_said_so() {
        let table: [(&[u8], &str); 4] = [
            (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "no WebSocket at the path /x"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "is /x MQTT's path?"),
            (b"", "does it listen for WebSocket there?"),
            (b"\x20\x02\x00\x00 no http\r\n\r\n", "does it listen for WebSocket there?"),
        ];
        for (answer, expected) in table {
            let (device, mut broker) = tokio::io::duplex(4096);
            broker.write_all(answer).await.unwrap();
            broker.shutdown().await.unwrap();
            let refused = connect(&url("/x"), Box::new(device)).await;
            let text = refused.err().unwrap().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }
}
