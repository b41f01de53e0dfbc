//! Asks an HTTP proxy for a tunnel: `CONNECT` (RFC 9110 §9.3.6), with Basic login (RFC 7617).
//!
//! The proxy resolves the broker's name: behind such a proxy a device often cannot.
//! Each problem reads on after "the proxy at ADDRESS,".

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest answer that is read before the tunnel begins.
const HEAD_MAX: usize = 8 * 1024;

/// Opens a tunnel to `target` (`host:port`).
pub(super) async fn open(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    target: &str,
    login: Option<&(&str, Vec<u8>)>,
) -> Result<(), String> {
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some((user, password)) = login {
        let pair = [user.as_bytes(), b":", password].concat();
        request += &format!("Proxy-Authorization: Basic {}\r\n", base64(&pair));
    }
    request += "\r\n";
    let failed = |e: std::io::Error| format!("which closed the connection ({e})");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == HEAD_MAX {
            return Err("which does not answer like an HTTP proxy".to_owned());
        }
        // Byte by byte: what follows the head belongs to the broker.
        head.push(stream.read_u8().await.map_err(failed)?);
    }
    verdict(&String::from_utf8_lossy(&head))
}

fn verdict(head: &str) -> Result<(), String> {
    let line = head.lines().next().unwrap_or_default();
    let mut words = line.splitn(3, ' ');
    let (version, code) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let said = words.next().unwrap_or_default().trim();
    match code.parse::<u16>() {
        Ok(200..=299) if version.starts_with("HTTP/1.") => Ok(()),
        Ok(407) => {
            Err("which wants another login: user in proxy, password in proxy_password_file".into())
        }
        Ok(403 | 405) => {
            Err(format!("which forbids it ({code} {said}): have broker and port allowed there"))
        }
        Ok(502..=504) => Err(format!("which cannot reach it either ({code} {said})")),
        Ok(_) if version.starts_with("HTTP/") => Err(format!("which answered {code} {said}")),
        _ => Err("which does not answer like an HTTP proxy".to_owned()),
    }
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = (0..3)
            .fold(0u32, |sum, at| sum << 8 | u32::from(chunk.get(at).copied().unwrap_or_default()));
        for at in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with `answer`; what was asked, and the verdict.
    async fn asked(answer: &[u8], login: Option<&(&str, Vec<u8>)>) -> (String, Result<(), String>) {
        let (mut device, mut proxy) = tokio::io::duplex(16 * 1024);
        proxy.write_all(answer).await.unwrap();
        let opened = open(&mut device, "broker:8883", login).await;
        let mut rest = String::new();
        if opened.is_ok() {
            proxy.write_all(b"!").await.unwrap();
            drop(proxy.shutdown().await);
            device.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, "hello!", "what follows the head is the broker's");
        }
        drop(device);
        let mut request = String::new();
        proxy.read_to_string(&mut request).await.unwrap();
        (request, opened)
    }

    #[tokio::test]
    async fn a_tunnel_is_asked_for_and_begins_right_behind_the_head() {
        let answer = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nhello";
        let (request, opened) = asked(answer, None).await;
        assert_eq!(opened, Ok(()));
        assert_eq!(request, "CONNECT broker:8883 HTTP/1.1\r\nHost: broker:8883\r\n\r\n");
        let login = ("flat", b"secret".to_vec());
        let (request, _) = asked(answer, Some(&login)).await;
        assert!(
            request.contains("\r\nProxy-Authorization: Basic ZmxhdDpzZWNyZXQ=\r\n"),
            "{request}"
        );
    }

    #[tokio::test]
    async fn each_refusal_says_what_to_do() {
        let table: [(&[u8], &str); 6] = [
            (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "proxy_password_file"),
            (b"HTTP/1.0 403 Forbidden\r\n\r\n", "forbids it (403 Forbidden)"),
            (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "cannot reach it either"),
            (b"HTTP/1.1 500 Oops\r\n\r\n", "answered 500 Oops"),
            (b"220 mail ESMTP\r\n\r\n", "does not answer like an HTTP proxy"),
            (&[b'x'; HEAD_MAX], "does not answer like an HTTP proxy"),
        ];
        for (answer, expected) in table {
            let (_, opened) = asked(answer, None).await;
            assert!(opened.clone().unwrap_err().contains(expected), "{opened:?}");
        }
    }

    #[test]
    fn base64_agrees_with_the_rfc() {
        let table =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (plain, coded) in table {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
