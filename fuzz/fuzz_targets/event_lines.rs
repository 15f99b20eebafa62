//! What a child may write where its events belong, in pieces of any length: it breaks the contract, and is told how, or
//! every measurement is one that can be stored.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trialhead::pool::child::hear;

const LINE_BYTES: usize = 4096;
const EVENTS: usize = 128;

fuzz_target!(|stream: &[u8]| {
    // From the end, so that the examples begin as they should.
    let piece = stream.last().copied().unwrap_or(0);
    let whole = hear(stream, usize::MAX, LINE_BYTES, EVENTS);
    let pieces = hear(stream, 1 + usize::from(piece), LINE_BYTES, EVENTS);
    assert_eq!(whole, pieces, "where its writes end makes a difference");
    match whole {
        Err(problem) => {
            assert!(!problem.is_empty());
            assert!(!problem.contains('\0'), "{problem:?}");
        }
        Ok(told) => {
            assert!(told.measurements.len() <= EVENTS);
            for measurement in told.measurements {
                assert!(measurement.value.is_finite(), "{measurement:?}");
                assert!(measurement.elapsed_secs.is_finite(), "{measurement:?}");
                assert!(!measurement.metric.is_empty(), "{measurement:?}");
                for text in [&measurement.metric, &measurement.unit] {
                    assert!(!text.contains('\0'), "{measurement:?}");
                    assert!(text.chars().count() <= 100, "{measurement:?}");
                }
            }
        }
    }
});
