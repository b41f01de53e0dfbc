//! A TCP connection to whichever address of a name answers first.
//!
//! Happy eyeballs (RFC 8305 §4, §5): the addresses are tried in the system's order, families taking
//! turns, a new attempt every 250 ms or as soon as one fails, and the first to stand wins. So a
//! broken IPv6 costs a quarter of a second and not a timeout.
//!
//! Absent: asking for A and AAAA separately (the system's resolver answers both at once), and
//! remembering which address won.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::{sleep, timeout};

use super::ConnectError;
use crate::driver::sys;

/// Kernel send buffer. Linux doubles it for its own bookkeeping, which leaves about this much for
/// bytes: two windows of ordinary events in 100 ms, and on a slow link no long queue before an alert.
const SEND_BUFFER_BYTES: u32 = 16 * 1024;
/// Of that, what has not been sent yet: two packets, so that the sender never waits for us.
const UNSENT_BYTES: u32 = 4 * 1024;
/// Between one attempt and the next (RFC 8305 §5 "Connection Attempt Delay").
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses tried at most: a name with more is a mistake, or hostile.
const ADDRESSES_MAX: usize = 16;

/// Connects within `limit`, name resolution included.
///
/// # Errors
/// Of the address that failed last.
pub(super) async fn connect(
    host: &str,
    port: u16,
    limit: Duration,
) -> Result<TcpStream, ConnectError> {
    let connecting = async {
        let found = lookup_host((host, port)).await.map_err(ConnectError::Resolve)?;
        race(interleave(found.collect()), dial).await
    };
    timeout(limit, connecting).await.unwrap_or(Err(ConnectError::TimedOut(limit)))
}

/// The families take turns, the first address's begins; within a family the order stays.
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let v6_first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == v6_first);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut turns = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            turns.truncate(ADDRESSES_MAX);
            return turns;
        }
        turns.extend(pair.into_iter().flatten());
    }
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    // A kernel without it does no harm: the forwarder bounds what is under way.
    sys::limit_unsent(socket.as_fd(), UNSENT_BYTES).ok();
    socket.connect(address).await
}

/// The first of the attempts that succeeds; the others are dropped.
async fn race<T, F>(
    addresses: Vec<SocketAddr>,
    dial: impl Fn(SocketAddr) -> F,
) -> Result<T, ConnectError>
where
    F: Future<Output = io::Result<T>>,
{
    let mut waiting = addresses.into_iter();
    let mut running: Vec<Pin<Box<F>>> = Vec::new();
    let mut last = ConnectError::Resolve(io::Error::other("the name has no addresses"));
    loop {
        match waiting.next() {
            Some(address) => running.push(Box::pin(dial(address))),
            None if running.is_empty() => return Err(last),
            None => {}
        }
        let ended = tokio::select! {
            biased;
            ended = poll_fn(|cx| poll_any(&mut running, cx)) => ended,
            () = sleep(STAGGER), if waiting.len() > 0 => continue,
        };
        match ended {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                last = ConnectError::Refused;
            }
            Err(error) => last = ConnectError::Io(error),
        }
    }
}

/// The first that has ended, taken out.
fn poll_any<F: Future>(running: &mut Vec<Pin<Box<F>>>, cx: &mut Context<'_>) -> Poll<F::Output> {
    for place in 0..running.len() {
        if let Poll::Ready(output) = running[place].as_mut().poll(cx) {
            drop(running.swap_remove(place));
            return Poll::Ready(output);
        }
    }
    Poll::Pending
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::Instant;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_beginning_with_the_first() {
        let given = ["[::1]:1", "[::2]:1", "[::3]:1", "1.0.0.1:1", "1.0.0.2:1"];
        let turns = ["[::1]:1", "1.0.0.1:1", "[::2]:1", "1.0.0.2:1", "[::3]:1"];
        assert_eq!(interleave(addresses(&given)), addresses(&turns));
        assert_eq!(interleave(Vec::new()), Vec::new());
        let many = vec![addresses(&["1.0.0.1:1"])[0]; 100];
        assert_eq!(interleave(many).len(), ADDRESSES_MAX);
    }

    /// What each address does: after how long, and with which end.
    type Fate = (u64, Result<(), io::ErrorKind>);

    #[allow(clippy::disallowed_methods, reason = "the virtual clock of the test")]
    /// Runs a race in virtual time; who won or why nobody, and when each was tried, in ms.
    async fn raced(fates: &[Fate]) -> (Result<u16, String>, Vec<(u16, u128)>, u128) {
        let began = Instant::now();
        let tried = Mutex::new(Vec::new());
        let all = (0..fates.len()).map(|n| SocketAddr::from(([1, 0, 0, 1], n as u16)));
        let result = race(all.collect(), |address| {
            let port = address.port();
            tried.lock().unwrap().push((port, began.elapsed().as_millis()));
            let (after_ms, end) = fates[usize::from(port)];
            async move {
                sleep(Duration::from_millis(after_ms)).await;
                end.map(|()| port).map_err(io::Error::from)
            }
        });
        let result = result.await.map_err(|e| e.to_string());
        (result, tried.into_inner().unwrap(), began.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_first_address_costs_a_quarter_of_a_second() {
        let (won, tried, took) = raced(&[(99_000, Ok(())), (10, Ok(())), (0, Ok(()))]).await;
        assert_eq!((won, took), (Ok(1), 260));
        assert_eq!(tried, [(0, 0), (1, 250)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_first_address_still_wins_if_it_answers_first() {
        let (won, _, took) = raced(&[(300, Ok(())), (500, Ok(()))]).await;
        assert_eq!((won, took), (Ok(0), 300));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_starts_the_next_at_once_and_the_last_error_is_told() {
        let refused = Err(io::ErrorKind::ConnectionRefused);
        let (won, tried, took) = raced(&[(1, refused), (1, refused), (1, refused)]).await;
        assert_eq!(won, Err(ConnectError::Refused.to_string()));
        assert_eq!(tried, [(0, 0), (1, 1), (2, 2)]);
        assert_eq!(took, 3);
        let (none, ..) = raced(&[]).await;
        assert!(none.unwrap_err().contains("no addresses"));
    }
}
