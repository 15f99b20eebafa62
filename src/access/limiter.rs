//! A limit on failed authentication for each peer. An attempt takes one from its bucket before it is looked at and gives
//! it back if it was let in, so that many attempts at once are no way around it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::buckets::{Buckets, Party};

/// Limits failed attempts.
#[derive(Debug)]
pub struct FailureLimiter {
    buckets: Buckets,
}

/// Seconds of the unit of the setting.
const MINUTE: f64 = 60.0;

impl FailureLimiter {
    /// Allows each peer so many failures a minute, and remembers so many peers.
    pub fn new(per_minute: u32, max_peers: usize) -> Self {
        let per_minute = f64::from(per_minute.max(1));
        Self {
            buckets: Buckets::new(per_minute / MINUTE, per_minute, max_peers),
        }
    }

    /// Takes one attempt.
    ///
    /// # Errors
    /// How long to wait, when the peer has none left.
    pub fn take(&self, peer: Option<IpAddr>, now: Instant) -> Result<Attempt, Duration> {
        self.buckets.take(Party::at(peer), now).map(Attempt)
    }

    /// Gives an attempt back that did not fail.
    pub fn give_back(&self, attempt: Attempt) {
        self.buckets.give_back(attempt.0);
    }
}

/// An attempt that was taken, and failed unless it is given back.
#[derive(Debug)]
#[must_use]
pub struct Attempt(Party);

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn a_peer_that_fails_too_often_waits_and_others_do_not() {
        let limiter = FailureLimiter::new(60, 100);
        let start = Instant::now();
        for _ in 0..60 {
            let _failed = limiter.take(ip("10.0.0.1"), start).expect("allowed");
        }
        let wait = limiter.take(ip("10.0.0.1"), start).expect_err("too many");
        assert!((0.9..=1.0).contains(&wait.as_secs_f64()), "{wait:?}");
        let _other = limiter.take(ip("10.0.0.2"), start).expect("another peer");
        let later = start + Duration::from_millis(1001);
        let _one = limiter.take(ip("10.0.0.1"), later).expect("one is back");
        limiter.take(ip("10.0.0.1"), later).expect_err("only one");
        let much_later = later + Duration::from_secs(3600);
        for _ in 0..60 {
            let _failed = limiter.take(ip("10.0.0.1"), much_later).expect("allowed");
        }
        limiter
            .take(ip("10.0.0.1"), much_later)
            .expect_err("never more than a minute's");
    }

    #[test]
    fn what_did_not_fail_is_given_back() {
        let limiter = FailureLimiter::new(1, 100);
        let now = Instant::now();
        for _ in 0..1000 {
            let attempt = limiter.take(ip("10.0.0.1"), now).expect("allowed");
            limiter.give_back(attempt);
        }
        let _failed = limiter.take(ip("10.0.0.1"), now).expect("allowed");
        limiter.take(ip("10.0.0.1"), now).expect_err("it failed");
    }

    #[test]
    fn many_peers_take_bounded_memory() {
        let limiter = FailureLimiter::new(2, 10);
        let now = Instant::now();
        for number in 0..100_u8 {
            let _ = limiter.take(Some([10, 0, 0, number].into()), now);
        }
        assert!(limiter.buckets.len() <= 11, "{}", limiter.buckets.len());
        // The newest share what is left, and it is used up.
        limiter.take(ip("10.9.9.9"), now).expect_err("shared");
        // Once the old ones are full again, they are forgotten and a new one has its own.
        let later = now + Duration::from_secs(61);
        let _own = limiter.take(ip("10.9.9.9"), later).expect("its own");
        assert!(limiter.buckets.len() <= 2, "{}", limiter.buckets.len());
    }

    #[test]
    fn a_network_of_ipv6_is_one_peer() {
        let limiter = FailureLimiter::new(1, 100);
        let now = Instant::now();
        let _failed = limiter.take(ip("2001:db8::1"), now).expect("allowed");
        limiter
            .take(ip("2001:db8::ffff:2"), now)
            .expect_err("the same /64");
        let _ = limiter.take(ip("2001:db8:0:1::1"), now).expect("another");
        let _ = limiter.take(ip("10.0.0.1"), now).expect("IPv4");
        limiter
            .take(ip("::ffff:10.0.0.1"), now)
            .expect_err("the same, mapped");
    }
}
