//! The way from the agent to the embedded broker, which can be cut.
//!
//! While it is cut, connections end and new ones are closed at once, as by a router that has lost its line.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::switches::{Fault, Switches};

/// Connections at once at most; more are closed.
const MAX_CONNECTIONS: usize = 16;
/// How often a quiet connection looks whether it is cut.
const LOOK: Duration = Duration::from_millis(100);

/// Listens on a free port of the loopback interface, for the life of the process; returns its address.
///
/// # Errors
/// There is no port, or no thread.
pub fn start(to: SocketAddr, switches: Switches) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let open = Arc::new(AtomicUsize::new(0));
    std::thread::Builder::new().name("relay".to_owned()).spawn(move || {
        for near in listener.incoming().filter_map(Result::ok) {
            if switches.is_on(Fault::Network) || open.load(Ordering::SeqCst) >= MAX_CONNECTIONS {
                continue;
            }
            if let Ok(far) = TcpStream::connect(to) {
                let _ = join(&near, &far, &switches, &open);
            }
        }
    })?;
    Ok(address)
}

/// A thread for each direction.
fn join(
    near: &TcpStream,
    far: &TcpStream,
    switches: &Switches,
    open: &Arc<AtomicUsize>,
) -> std::io::Result<()> {
    for (from, to) in [(near, far), (far, near)] {
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        from.set_read_timeout(Some(LOOK))?;
        from.set_nodelay(true)?;
        let (switches, open) = (switches.clone(), Arc::clone(open));
        std::thread::Builder::new().name("relay".to_owned()).spawn(move || {
            open.fetch_add(1, Ordering::SeqCst);
            carry(&from, &to, &switches);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
            open.fetch_sub(1, Ordering::SeqCst);
        })?;
    }
    Ok(())
}

/// Until one side ends, or the way is cut.
fn carry(mut from: &TcpStream, mut to: &TcpStream, switches: &Switches) {
    let mut bytes = [0; 16 * 1024];
    while !switches.is_on(Fault::Network) {
        match from.read(&mut bytes) {
            Ok(0) => return,
            Ok(count) if to.write_all(&bytes[..count]).is_ok() => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_pass_until_the_way_is_cut_and_again_when_it_is_mended() {
        let far = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let switches = Switches::default();
        let address = start(far.local_addr().unwrap(), switches.clone()).unwrap();
        let connect = || {
            let mut near = TcpStream::connect(address).unwrap();
            near.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            near.write_all(b"ping").unwrap();
            near
        };
        let mut near = connect();
        let (mut other, _) = far.accept().unwrap();
        let mut bytes = [0; 4];
        other.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ping");
        switches.set(Fault::Network, true);
        assert!(matches!(near.read(&mut bytes), Ok(0) | Err(_)), "the connection ends");
        let mut cut = TcpStream::connect(address).unwrap();
        cut.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        assert!(matches!(cut.read(&mut bytes), Ok(0) | Err(_)), "and none begins");
        switches.set(Fault::Network, false);
        let _near = connect();
        let (mut other, _) = far.accept().unwrap();
        other.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ping");
    }
}
