//! How many studies a project may still begin, without counting those that it has each time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A count is believed for so long,
const BELIEVED: Duration = Duration::from_secs(1);
/// and for this part of the room that it found, the place that was counted for among them. So up to ten services that
/// count beside each other exceed no limit.
const SHARE: u64 = 10;
/// Projects whose counts are kept; beyond that those that are believed no more make room.
const MANY: usize = 1000;

/// What was counted lately, by project.
#[derive(Debug, Clone, Default)]
pub struct Room(Arc<Mutex<HashMap<String, Counted>>>);

#[derive(Debug)]
struct Counted {
    at: Instant,
    left: u64,
}

impl Room {
    /// Takes a place that the last count has left; false where there is none and somebody has to count.
    pub(super) fn take(&self, project: &str) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(counted) = counts.get_mut(project) else {
            return false;
        };
        if counted.left == 0 || counted.at.elapsed() >= BELIEVED {
            return false;
        }
        counted.left -= 1;
        true
    }

    /// Notes how many places were free at a time.
    pub(super) fn counted(&self, project: &str, at: Instant, free: u64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= MANY {
            counts.retain(|_, it| it.at.elapsed() < BELIEVED);
        }
        // One that was made later knows more.
        if counts.get(project).is_some_and(|it| it.at > at) {
            return;
        }
        let left = (free / SHARE).saturating_sub(1);
        counts.insert(project.to_owned(), Counted { at, left });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_what_was_free_is_taken_without_counting_and_no_more() {
        let room = Room::default();
        assert!(!room.take("a"), "nobody has counted");
        let now = Instant::now();
        room.counted("a", now, 39);
        assert_eq!((0..10).filter(|_| room.take("a")).count(), 2);
        // A count that was made before that one comes too late.
        let before = now.checked_sub(Duration::from_millis(1));
        room.counted("a", before.expect("the machine runs for longer"), 1000);
        assert!(!room.take("a"));
        assert!(!room.take("b"), "each project has its own");
        // The last places are counted one by one.
        room.counted("a", Instant::now(), 19);
        assert!(!room.take("a"));
    }

    #[test]
    fn an_old_count_is_not_believed() {
        let room = Room::default();
        let before = Instant::now().checked_sub(2 * BELIEVED);
        room.counted("a", before.expect("the machine runs for longer"), 1000);
        assert!(!room.take("a"));
    }
}
