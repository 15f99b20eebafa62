//! A limit on failed authentication for each peer, in bounded memory.
//!
//! One bucket for each peer: it holds so many failures as a minute may have, and fills up again evenly. An attempt takes
//! one before it is looked at and gives it back if it was let in, so that many attempts at once are no way around it.
//! `governor` was looked at first: its keyed limiter can neither give back nor look without taking, and keeps every key
//! it has seen until somebody sweeps.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Limits failed attempts.
#[derive(Debug)]
pub struct FailureLimiter {
    per_minute: f64,
    max_peers: usize,
    buckets: Mutex<HashMap<Peer, Bucket>>,
}

/// Who attempts. Whoever has one address of IPv6 has a whole /64 of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Peer {
    Address(IpAddr),
    /// All that no longer fit.
    Others,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// A minute, in the unit of the buckets.
const MINUTE: f64 = 60.0;

impl FailureLimiter {
    /// Allows each peer so many failures a minute, and remembers so many peers.
    pub fn new(per_minute: u32, max_peers: usize) -> Self {
        Self {
            per_minute: f64::from(per_minute.max(1)),
            max_peers: max_peers.max(1),
            buckets: Mutex::default(),
        }
    }

    /// Takes one attempt.
    ///
    /// # Errors
    /// How long to wait, when the peer has none left.
    pub fn take(&self, peer: Option<IpAddr>, now: Instant) -> Result<Attempt, Duration> {
        let mut buckets = self.lock();
        let key = self.place(&mut buckets, peer, now);
        let bucket = buckets.entry(key).or_insert(Bucket {
            left: self.per_minute,
            at: now,
        });
        self.fill(bucket, now);
        if bucket.left < 1.0 {
            let secs = (1.0 - bucket.left) * MINUTE / self.per_minute;
            return Err(Duration::from_secs_f64(secs));
        }
        bucket.left -= 1.0;
        Ok(Attempt(key))
    }

    /// Gives an attempt back that did not fail.
    pub fn give_back(&self, attempt: Attempt) {
        if let Some(bucket) = self.lock().get_mut(&attempt.0) {
            bucket.left = (bucket.left + 1.0).min(self.per_minute);
        }
    }

    fn fill(&self, bucket: &mut Bucket, now: Instant) {
        let secs = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + secs * self.per_minute / MINUTE).min(self.per_minute);
        bucket.at = bucket.at.max(now);
    }

    /// The bucket of a peer. When there are too many, those that are full again are forgotten; if that is not enough, new
    /// peers share one.
    fn place(
        &self,
        buckets: &mut HashMap<Peer, Bucket>,
        peer: Option<IpAddr>,
        now: Instant,
    ) -> Peer {
        let Some(address) = peer else {
            return Peer::Others;
        };
        let key = Peer::Address(network(address));
        if buckets.contains_key(&key) || buckets.len() < self.max_peers {
            return key;
        }
        buckets.retain(|_, bucket| {
            self.fill(bucket, now);
            bucket.left < self.per_minute
        });
        if buckets.len() < self.max_peers {
            key
        } else {
            Peer::Others
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Peer, Bucket>> {
        // Whatever panicked while it held the lock, a bucket is a bucket.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt that was taken, and failed unless it is given back.
#[derive(Debug)]
#[must_use]
pub struct Attempt(Peer);

/// An address of IPv4 itself, the /64 of one of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (!0_u128 << 64))),
        address => address,
    }
}

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
        assert!(limiter.lock().len() <= 11, "{}", limiter.lock().len());
        // The newest share what is left, and it is used up.
        limiter.take(ip("10.9.9.9"), now).expect_err("shared");
        // Once the old ones are full again, they are forgotten and a new one has its own.
        let later = now + Duration::from_secs(61);
        let _own = limiter.take(ip("10.9.9.9"), later).expect("its own");
        assert!(limiter.lock().len() <= 2, "{}", limiter.lock().len());
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
