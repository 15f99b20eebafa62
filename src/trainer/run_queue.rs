//! How long this process's threads waited for a processor: contention that neither wall-clock nor
//! processor time shows.

/// Time the threads of this process have waited on a run queue, nanoseconds, summed. `None` where the
/// kernel does not tell (`/proc/self/task/*/schedstat`, Linux with `CONFIG_SCHED_INFO`).
pub(super) fn delay_nanos() -> Option<u64> {
    let mut total = 0_u64;
    let mut told = false;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        // A thread that ended meanwhile has no file; it has nothing more to add either.
        let Ok(text) = std::fs::read_to_string(task.ok()?.path().join("schedstat")) else {
            continue;
        };
        total += second_field(&text)?;
        told = true;
    }
    told.then_some(total)
}

/// `schedstat` is: time on the processor, time waiting for one, number of time slices.
fn second_field(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_waiting_time_is_the_second_field() {
        assert_eq!(second_field("123 456 7\n"), Some(456));
        assert_eq!(second_field(""), None);
    }
}
