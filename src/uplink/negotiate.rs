//! Which MQTT the next attempt speaks.
//!
//! A broker that does not speak MQTT 5 says so in CONNACK, or closes without one. The first is
//! certain; the second looks exactly like a network cut. So:
//!
//! - a refusal in CONNACK changes the version, and from 5 to 3.1.1 without a wait;
//! - a close without CONNACK changes it for the next attempt, unless this version worked before and
//!   this was not the third such close in a row;
//! - 3.1.1 reached by such a guess is left for another try at 5 on the next connection, until the
//!   guess has been right three times in a row.
//!
//! A cut at a bad moment therefore costs one connection over 3.1.1, not MQTT 5 for ever; and a
//! broker that was exchanged for another is found out.

use super::{Protocol, Version};

/// How often a guess must be right, or what worked must fail, to be believed.
const CONVINCED: u8 = 3;

#[derive(Debug)]
pub(super) struct Negotiation {
    protocol: Protocol,
    /// What the connection at hand speaks.
    current: Version,
    /// What the next one will speak.
    next: Version,
    /// The version that is known to work.
    settled: Option<Version>,
    /// `next` is 3.1.1 only because connections over 5 closed without an answer.
    guessed: bool,
    /// How often in a row 3.1.1 was accepted after such a guess.
    guesses_right: u8,
    /// Closes without CONNACK in a row.
    unanswered: u8,
}

impl Negotiation {
    pub(super) fn new(protocol: Protocol) -> Self {
        let first = match protocol {
            Protocol::Auto | Protocol::V5 => Version::V5,
            Protocol::V311 => Version::V311,
        };
        Self {
            protocol,
            current: first,
            next: first,
            settled: None,
            guessed: false,
            guesses_right: 0,
            unanswered: 0,
        }
    }

    /// A connection begins; this is what it speaks.
    pub(super) fn begin(&mut self) -> Version {
        self.current = self.next;
        self.current
    }

    /// What the connection at hand speaks.
    pub(super) fn current(&self) -> Version {
        self.current
    }

    /// Whether another version can be tried at all.
    pub(super) fn is_auto(&self) -> bool {
        self.protocol == Protocol::Auto
    }

    /// The broker answered in this version: with welcome, or with a refusal for another reason.
    pub(super) fn answered(&mut self) {
        self.unanswered = 0;
        if self.current == Version::V5 || !self.guessed {
            self.guesses_right = 0;
            self.settled = Some(self.current);
            return;
        }
        self.guesses_right = self.guesses_right.saturating_add(1);
        if self.guesses_right >= CONVINCED {
            self.guessed = false;
            self.settled = Some(Version::V311);
        } else if self.is_auto() {
            self.next = Version::V5;
        }
    }

    /// The broker said that it does not speak this version. Returns the version to change to.
    pub(super) fn version_refused(&mut self) -> Option<Version> {
        self.unanswered = 0;
        self.guesses_right = 0;
        self.guessed = false;
        self.settled = None;
        self.change()
    }

    /// The connection ended before any CONNACK. Returns the version to change to.
    pub(super) fn unanswered(&mut self) -> Option<Version> {
        self.unanswered = self.unanswered.saturating_add(1);
        if self.settled == Some(self.current) && self.unanswered < CONVINCED {
            return None;
        }
        self.guessed = true;
        self.settled = None;
        self.change()
    }

    fn change(&mut self) -> Option<Version> {
        if !self.is_auto() {
            return None;
        }
        self.next = match self.current {
            Version::V5 => Version::V311,
            Version::V311 => Version::V5,
        };
        Some(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Version::{V5, V311};

    #[test]
    fn a_refusal_changes_at_once_and_what_then_works_is_kept() {
        let mut n = Negotiation::new(Protocol::Auto);
        assert_eq!(n.begin(), V5);
        assert_eq!(n.version_refused(), Some(V311));
        for _ in 0..5 {
            assert_eq!(n.begin(), V311);
            n.answered();
        }
        assert_eq!(n.begin(), V311);
        assert_eq!(n.unanswered(), None, "a cut is no reason to leave what works");
        assert_eq!(n.begin(), V311);
    }

    #[test]
    fn a_cut_before_connack_does_not_cost_mqtt_5_for_ever() {
        let mut n = Negotiation::new(Protocol::Auto);
        n.begin();
        assert_eq!(n.unanswered(), Some(V311));
        assert_eq!(n.begin(), V311);
        n.answered();
        assert_eq!(n.begin(), V5, "3.1.1 was only a guess");
        n.answered();
        assert_eq!(n.begin(), V5);
        assert_eq!(n.unanswered(), None);
    }

    #[test]
    fn a_broker_that_closes_on_mqtt_5_is_believed_after_three_times() {
        let mut n = Negotiation::new(Protocol::Auto);
        for _ in 0..3 {
            assert_eq!(n.begin(), V5);
            assert_eq!(n.unanswered(), Some(V311));
            assert_eq!(n.begin(), V311);
            n.answered();
        }
        assert_eq!(n.begin(), V311);
    }

    #[test]
    fn while_nothing_answers_both_are_tried_in_turn() {
        let mut n = Negotiation::new(Protocol::Auto);
        let tried: Vec<_> = (0..4)
            .map(|_| {
                let version = n.begin();
                n.unanswered();
                version
            })
            .collect();
        assert_eq!(tried, [V5, V311, V5, V311]);
    }

    #[test]
    fn a_broker_exchanged_for_an_older_one_is_found_out() {
        let mut n = Negotiation::new(Protocol::Auto);
        n.begin();
        n.answered();
        let changes: Vec<_> = (0..3)
            .map(|_| {
                n.begin();
                n.unanswered()
            })
            .collect();
        assert_eq!(changes, [None, None, Some(V311)]);
    }

    #[test]
    fn a_fixed_version_never_changes() {
        for (protocol, version) in [(Protocol::V5, V5), (Protocol::V311, V311)] {
            let mut n = Negotiation::new(protocol);
            assert_eq!(n.begin(), version);
            assert_eq!(n.version_refused(), None);
            assert_eq!(n.unanswered(), None);
            assert_eq!(n.begin(), version);
        }
    }
}
