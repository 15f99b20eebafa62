//! Limits for each party, in bounded memory.
//!
//! One bucket for each: it holds so many as may come at once, and fills up again evenly. What is taken can be given
//! back. `governor` was looked at first: its keyed limiter can neither give back nor look without taking, and keeps every
//! key it has seen until somebody sweeps.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// Who is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Party {
    /// Whoever asks from an address. Who has one address of IPv6 has a whole /64 of them.
    Address(IpAddr),
    /// Whoever has an access token.
    Token(Uuid),
    /// All that no longer fit, or come from nowhere.
    Others,
}

impl Party {
    /// By the address of a connection.
    pub fn at(address: Option<IpAddr>) -> Self {
        address.map_or(Self::Others, |address| Self::Address(network(address)))
    }
}

/// Buckets of all parties.
#[derive(Debug)]
pub(super) struct Buckets {
    per_sec: f64,
    capacity: f64,
    max_parties: usize,
    buckets: Mutex<HashMap<Party, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Buckets {
    /// Buckets that hold `capacity` and get `per_sec` a second, for so many parties; more share one.
    pub(super) fn new(per_sec: f64, capacity: f64, max_parties: usize) -> Self {
        Self {
            per_sec,
            capacity: capacity.max(1.0),
            max_parties: max_parties.max(1),
            buckets: Mutex::default(),
        }
    }

    /// Takes one, and says from which bucket.
    ///
    /// # Errors
    /// How long to wait, when the party has none left.
    pub(super) fn take(&self, party: Party, now: Instant) -> Result<Party, Duration> {
        let mut buckets = self.lock();
        let key = self.place(&mut buckets, party, now);
        let bucket = buckets.entry(key).or_insert(Bucket {
            left: self.capacity,
            at: now,
        });
        self.fill(bucket, now);
        if bucket.left < 1.0 {
            let secs = (1.0 - bucket.left) / self.per_sec;
            return Err(Duration::from_secs_f64(secs));
        }
        bucket.left -= 1.0;
        Ok(key)
    }

    /// Gives one back.
    pub(super) fn give_back(&self, key: Party) {
        if let Some(bucket) = self.lock().get_mut(&key) {
            bucket.left = (bucket.left + 1.0).min(self.capacity);
        }
    }

    /// Parties that are told apart now.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn fill(&self, bucket: &mut Bucket, now: Instant) {
        let secs = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + secs * self.per_sec).min(self.capacity);
        bucket.at = bucket.at.max(now);
    }

    /// The bucket of a party. When there are too many, those that are full again are forgotten; if that is not enough,
    /// new parties share one.
    fn place(&self, buckets: &mut HashMap<Party, Bucket>, party: Party, now: Instant) -> Party {
        if buckets.contains_key(&party) || buckets.len() < self.max_parties {
            return party;
        }
        buckets.retain(|_, bucket| {
            self.fill(bucket, now);
            bucket.left < self.capacity
        });
        if buckets.len() < self.max_parties {
            party
        } else {
            Party::Others
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Party, Bucket>> {
        // Whatever panicked while it held the lock, a bucket is a bucket.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An address of IPv4 itself, the /64 of one of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (!0_u128 << 64))),
        address => address,
    }
}
