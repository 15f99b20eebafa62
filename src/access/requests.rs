//! How many requests a caller may send in a second, and have under way at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::buckets::{Buckets, Party};

/// Limits requests.
#[derive(Debug)]
pub struct RequestLimiter {
    /// None without a limit.
    rate: Option<Buckets>,
    /// Of one party.
    most_at_once: usize,
    under_way: Arc<Mutex<HashMap<Party, usize>>>,
}

/// Parties whose requests are counted apart; more share one count.
const MAX_PARTIES: usize = 10_000;

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMany {
    /// They come too fast; one more may come after this.
    Rate(Duration),
    /// So many are under way already.
    AtOnce(usize),
}

impl RequestLimiter {
    /// Allows each party so many requests a second on average (0: any number), a burst of so many, and so many at once
    /// (0: any number).
    pub fn new(per_sec: f64, burst: u32, most_at_once: usize) -> Self {
        Self {
            rate: (per_sec > 0.0).then(|| Buckets::new(per_sec, f64::from(burst), MAX_PARTIES)),
            most_at_once: match most_at_once {
                0 => usize::MAX,
                most => most,
            },
            under_way: Arc::default(),
        }
    }

    /// Lets a request in, until what is given is dropped. One that waits is not counted among those under way: it has a
    /// limit of its own.
    ///
    /// # Errors
    /// [`TooMany`], when it must come later.
    pub fn enter(&self, party: Party, waits: bool, now: Instant) -> Result<UnderWay, TooMany> {
        let counted = (!waits).then(|| self.count(party)).transpose()?;
        if let Some(rate) = &self.rate {
            rate.take(party, now).map_err(TooMany::Rate)?;
        }
        Ok(UnderWay { _counted: counted })
    }

    fn count(&self, party: Party) -> Result<Counted, TooMany> {
        let mut under_way = lock(&self.under_way);
        let count = under_way.entry(party).or_default();
        if *count >= self.most_at_once {
            return Err(TooMany::AtOnce(*count));
        }
        *count += 1;
        Ok(Counted {
            party,
            under_way: Arc::clone(&self.under_way),
        })
    }
}

/// A request under way.
#[derive(Debug)]
#[must_use]
pub struct UnderWay {
    _counted: Option<Counted>,
}

#[derive(Debug)]
struct Counted {
    party: Party,
    under_way: Arc<Mutex<HashMap<Party, usize>>>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut under_way = lock(&self.under_way);
        if let Some(count) = under_way.get_mut(&self.party) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&self.party);
            }
        }
    }
}

fn lock(counts: &Mutex<HashMap<Party, usize>>) -> MutexGuard<'_, HashMap<Party, usize>> {
    // Whatever panicked while it held the lock, a count is a count.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn token(number: u128) -> Party {
        Party::Token(Uuid::from_u128(number))
    }

    #[test]
    fn a_party_that_is_too_fast_waits_and_others_do_not() {
        let limiter = RequestLimiter::new(10.0, 5, 0);
        let now = Instant::now();
        for _ in 0..5 {
            let _ = limiter.enter(token(1), false, now).expect("the burst");
        }
        let Err(TooMany::Rate(wait)) = limiter.enter(token(1), false, now) else {
            panic!("too fast")
        };
        assert!((0.09..=0.1).contains(&wait.as_secs_f64()), "{wait:?}");
        let _ = limiter.enter(token(2), false, now).expect("another");
        let later = now + Duration::from_millis(101);
        let _ = limiter.enter(token(1), false, later).expect("one more");
    }

    #[test]
    fn only_so_many_are_under_way_at_once_and_those_that_wait_do_not_count() {
        let limiter = RequestLimiter::new(0.0, 1, 2);
        let now = Instant::now();
        let first = limiter.enter(token(1), false, now).expect("one");
        let _second = limiter.enter(token(1), false, now).expect("two");
        assert_eq!(
            limiter.enter(token(1), false, now).err(),
            Some(TooMany::AtOnce(2))
        );
        let _waiting = limiter.enter(token(1), true, now).expect("waits");
        let _other = limiter.enter(token(2), false, now).expect("another");
        drop(first);
        let _third = limiter.enter(token(1), false, now).expect("one has ended");
        drop((_second, _third, _other));
        assert!(lock(&limiter.under_way).is_empty());
    }
}
