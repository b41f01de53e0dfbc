//! The end of a value whose end may never come.
//!
//! sled's `Db` waits, when it is dropped, for a thread of its own that flushes its log. In a damaged store that thread can
//! have panicked, and then the wait has no end: the agent would stand still in the opening that found the damage. So it is
//! dropped in a thread, which is waited for [`LIMIT`] at most and then left behind. What it holds on to is a store that was
//! set aside, or that the end of the process gives free.

use std::ops::Deref;
use std::sync::mpsc;
use std::time::Duration;

/// How long to wait: a store that is well closes in milliseconds, since each commit is synced already.
pub(super) const LIMIT: Duration = Duration::from_secs(3);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Closing<T: Send + 'static> {
    /// `None` only while it is dropped.
    value: Option<T>,
    limit: Duration,
}

impl<T: Send + 'static> Closing<T> {
    pub(super) fn new(value: T, limit: Duration) -> Self {
        Self { value: Some(value), limit }
    }
}

impl<T: Send + 'static> Deref for Closing<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("there until it is dropped")
    }
}

impl<T: Send + 'static> Drop for Closing<T> {
    fn drop(&mut self) {
        let Some(value) = self.value.take() else { return };
        let (ended, end) = mpsc::channel::<()>();
        let close = move || {
            // Told by the end of the sender, after a panic as well.
            let _ended = ended;
            drop(value);
        };
        // Where no thread can be made, the closure is dropped here, and the value with it.
        let thread = std::thread::Builder::new().name("close".to_owned()).spawn(close);
        if thread.is_ok() && end.recv_timeout(self.limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::error!("sled does not close its store: it is left as it is");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Stuck(mpsc::Receiver<()>);

    impl Drop for Stuck {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }

    struct Panics;

    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("in its end");
        }
    }

    #[test]
    fn an_end_that_never_comes_is_not_waited_for_for_ever() {
        let (go_on, stuck) = mpsc::channel();
        let closing = Closing::new(Stuck(stuck), Duration::from_millis(10));
        drop(closing);
        // It was still there.
        assert!(go_on.send(()).is_ok());
    }

    #[test]
    fn an_end_that_comes_is_waited_for_and_a_panic_in_it_is_one() {
        let (told, end) = mpsc::channel();
        struct Tells(mpsc::Sender<()>);
        impl Drop for Tells {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        drop(Closing::new(Tells(told), LIMIT));
        assert_eq!(end.try_recv(), Ok(()));
        drop(Closing::new(Panics, LIMIT));
    }
}
