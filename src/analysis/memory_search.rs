//! The search for the largest batch size that fits, guided by the fit of m(B) = a + b·B.
//!
//! A batch size *fits* when its probe ran within the limit and its peak leaves the reserve free. So
//! a probe in the reserve's zone tells its peak instead of dying, and the answer is directly what
//! may be recommended. Sequence: the smallest, ×8, ×8 … until memory has risen by 15%; then just
//! below the predicted limit; then just above the largest that fits, at the very distance at which
//! the search may stop. A prediction that misleads is answered with bisection.

use super::memory::fit;
use crate::study::{BatchSize, MaxFrom, Resolution};

/// What one batch size was seen to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Seen {
    /// It ran with this peak, bytes.
    Peak(f64),
    /// It ran out of memory.
    OutOfMemory,
    /// It hit the time limit.
    TooSlow,
    /// Its probe failed for reasons of the service's own: a hole, not a limit.
    Nothing,
}

/// What is searched.
#[derive(Debug, Clone, PartialEq)]
pub struct Search {
    /// The smallest batch size considered.
    pub min: BatchSize,
    /// The largest batch size considered.
    pub max: BatchSize,
    /// Where `max` comes from.
    pub max_from: MaxFrom,
    /// The budget less the reserve, bytes.
    pub usable_bytes: f64,
    /// When the search may stop.
    pub resolution: Resolution,
    /// The grid, ascending; used when the resolution is the grid.
    pub grid: Vec<BatchSize>,
    /// Every batch size is a multiple of it: the devices that share one out.
    pub multiple_of: u64,
}

/// What limits the largest feasible batch size.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum LimitedBy {
    /// The memory budget.
    Memory,
    /// The range that the study asked for: a larger batch may fit too.
    Range,
    /// The number of training examples: a larger batch may fit too.
    Dataset,
    /// The time that one probe may take.
    Time,
}

/// What the search knows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SearchStep {
    /// Look here next.
    Probe(BatchSize),
    /// The search is over.
    Done(SearchEnd),
}

/// Where the search ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SearchEnd {
    /// The largest batch size that fits; none when not even the smallest does.
    pub largest: Option<BatchSize>,
    /// What limits it.
    pub limited_by: LimitedBy,
}

/// Memory has risen enough to be extrapolated when it is this much above the smallest peak.
const RISEN: f64 = 1.15;
/// Factor between looks until then.
const STRIDE: u64 = 8;
/// First look at the predicted limit: low enough to fit despite a noise of 1.5%.
const BELOW_PREDICTION: f64 = 0.985;
/// The gap at which the search may stop, as a part of the batch size.
const RESOLUTION_PARTS: u64 = 32;
/// Looks near the largest that fits after which the prediction has had its chance.
const GUIDED_LOOKS: usize = 3;

impl Search {
    fn fits(&self, seen: Seen) -> bool {
        matches!(seen, Seen::Peak(peak) if peak <= self.usable_bytes)
    }

    fn tolerance(&self, largest: u64) -> u64 {
        match self.resolution {
            Resolution::OneThirtySecond => (largest / RESOLUTION_PARTS).max(1),
            Resolution::Exact | Resolution::Grid => 1,
        }
    }

    /// The next look, given everything seen so far in any order. A batch size seen twice counts by
    /// its worse sight.
    pub fn next(&self, seen: &[(BatchSize, Seen)]) -> SearchStep {
        let devices = self.multiple_of;
        if devices <= 1 {
            return self.next_of_one(seen);
        }
        // What one device's share may be is searched.
        let share = |size: BatchSize| BatchSize(size.0 / devices);
        let whole = |size: BatchSize| BatchSize(size.0.saturating_mul(devices));
        let of_one = Self {
            min: share(self.min),
            max: share(self.max),
            grid: self.grid.iter().map(|size| share(*size)).collect(),
            multiple_of: 1,
            ..self.clone()
        };
        let seen: Vec<(BatchSize, Seen)> =
            seen.iter().map(|(size, it)| (share(*size), *it)).collect();
        match of_one.next_of_one(&seen) {
            SearchStep::Probe(size) => SearchStep::Probe(whole(size)),
            SearchStep::Done(end) => SearchStep::Done(SearchEnd {
                largest: end.largest.map(whole),
                ..end
            }),
        }
    }

    fn next_of_one(&self, seen: &[(BatchSize, Seen)]) -> SearchStep {
        let unfit = seen
            .iter()
            .filter(|(_, it)| *it != Seen::Nothing && !self.fits(*it))
            .min_by_key(|(size, _)| *size);
        let ceiling = unfit.map(|(size, _)| size.0);
        let limited_by = match unfit {
            Some((_, Seen::TooSlow)) => LimitedBy::Time,
            Some(_) => LimitedBy::Memory,
            None => match self.max_from {
                MaxFrom::Range => LimitedBy::Range,
                MaxFrom::Dataset => LimitedBy::Dataset,
            },
        };
        let floor = seen
            .iter()
            .filter(|(size, it)| self.fits(*it) && ceiling.is_none_or(|ceiling| size.0 < ceiling))
            .map(|(size, _)| size.0)
            .max();
        let done = |largest: Option<u64>| {
            SearchStep::Done(SearchEnd {
                largest: largest.map(BatchSize),
                limited_by,
            })
        };
        let Some(floor) = floor else {
            // Nothing fits yet: the smallest decides, and is looked at once.
            let min_was_seen = seen.iter().any(|(size, _)| *size == self.min);
            return if min_was_seen {
                done(None)
            } else {
                SearchStep::Probe(self.min)
            };
        };
        let highest = ceiling.map_or(self.max.0, |ceiling| ceiling - 1);
        let gap_is_small = ceiling.is_some_and(|ceiling| ceiling - floor <= self.tolerance(floor));
        if floor >= highest || gap_is_small {
            return done(Some(floor));
        }
        let wanted = self.guess(seen, floor, ceiling).clamp(floor + 1, highest);
        let holes: Vec<u64> = seen
            .iter()
            .filter(|(_, it)| *it == Seen::Nothing)
            .map(|(size, _)| size.0)
            .collect();
        match self.admissible(wanted, floor, highest, &holes) {
            Some(next) => SearchStep::Probe(BatchSize(next)),
            None => done(Some(floor)),
        }
    }

    /// Where the limit may be.
    fn guess(&self, seen: &[(BatchSize, Seen)], floor: u64, ceiling: Option<u64>) -> u64 {
        let peaks: Vec<(BatchSize, f64)> = seen
            .iter()
            .filter_map(|(size, it)| match it {
                Seen::Peak(peak) => Some((*size, *peak)),
                _ => None,
            })
            .collect();
        let lowest = peaks
            .iter()
            .map(|(_, peak)| *peak)
            .fold(f64::INFINITY, f64::min);
        let highest = peaks.iter().map(|(_, peak)| *peak).fold(0.0, f64::max);
        let middle = |ceiling: u64| {
            // Far apart, the middle of the logarithms; close together, the middle.
            if ceiling > 4 * floor {
                ((floor as f64) * (ceiling as f64)).sqrt() as u64
            } else {
                floor + (ceiling - floor) / 2
            }
        };
        let model = fit(&peaks).filter(|_| highest >= RISEN * lowest);
        let Some(model) = model else {
            return ceiling.map_or(floor.saturating_mul(STRIDE), middle);
        };
        let near = seen
            .iter()
            .filter(|(size, _)| size.0 >= floor - floor / 8)
            .count();
        if near > GUIDED_LOOKS {
            return ceiling.map_or(floor.saturating_mul(2), middle);
        }
        let limit = ((self.usable_bytes - model.fixed_bytes) / model.bytes_per_example).max(0.0);
        let below = match self.resolution {
            Resolution::OneThirtySecond => BELOW_PREDICTION * limit,
            Resolution::Exact | Resolution::Grid => limit,
        } as u64;
        // A prediction at or beyond a limit that was met has been proved wrong there.
        if let Some(ceiling) = ceiling.filter(|ceiling| below >= ceiling - (ceiling - floor) / 10) {
            return middle(ceiling);
        }
        // Nearer than the resolution it would tell nothing: exactly that far, and not fitting, it
        // ends the search.
        below.max(floor + self.tolerance(floor))
    }

    /// The admissible batch size next to a wanted one, strictly above the floor.
    fn admissible(&self, wanted: u64, floor: u64, highest: u64, holes: &[u64]) -> Option<u64> {
        if self.resolution == Resolution::Grid {
            let open: Vec<u64> = self
                .grid
                .iter()
                .map(|size| size.0)
                .filter(|size| *size > floor && *size <= highest && !holes.contains(size))
                .collect();
            let below = open.iter().copied().filter(|size| *size <= wanted).max();
            return below.or_else(|| open.into_iter().min());
        }
        let down = (floor + 1..=wanted).rev();
        let up = wanted + 1..=highest;
        down.chain(up).find(|size| !holes.contains(size))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(search: &Search, mut look: impl FnMut(u64) -> Seen) -> (SearchEnd, Vec<u64>) {
        let mut seen = Vec::new();
        loop {
            match search.next(&seen) {
                SearchStep::Probe(size) => {
                    assert!(size >= search.min && size <= search.max, "{size}");
                    assert!(
                        !seen.iter().any(|(before, _)| *before == size),
                        "{size} twice"
                    );
                    seen.push((size, look(size.0)));
                }
                SearchStep::Done(end) => {
                    return (end, seen.into_iter().map(|(size, _)| size.0).collect());
                }
            }
            assert!(seen.len() < 80, "the search does not end: {seen:?}");
        }
    }

    fn search(max: u64, usable: f64, resolution: Resolution) -> Search {
        Search {
            min: BatchSize(1),
            max: BatchSize(max),
            max_from: MaxFrom::Range,
            usable_bytes: usable,
            resolution,
            grid: (0..40)
                .map(|power| BatchSize(1 << power))
                .filter(|size| size.0 <= max)
                .collect(),
            multiple_of: 1,
        }
    }

    proptest! {
        #[test]
        fn row_20_21_an_exact_search_finds_the_floor(a in 0.0..0.9_f64, limit in 1_u64..200_000) {
            // m(B) = a + bB with the exact limit at `limit`.
            let usable = 1e9;
            let fixed = a * usable;
            let each = (usable - fixed) / (limit as f64 + 0.5);
            let search = search(1 << 20, usable, Resolution::Exact);
            let (end, _) = run(&search, |size| {
                let peak = fixed + each * size as f64;
                if peak > 1.1 * usable { Seen::OutOfMemory } else { Seen::Peak(peak) }
            });
            prop_assert_eq!(end.largest, Some(BatchSize(limit)));
            prop_assert_eq!(end.limited_by, LimitedBy::Memory);
        }

        #[test]
        fn a_search_on_the_grid_finds_its_largest(a in 0.0..0.9_f64, limit in 1_u64..200_000) {
            let usable = 1e9;
            let fixed = a * usable;
            let each = (usable - fixed) / (limit as f64 + 0.5);
            let search = search(1 << 20, usable, Resolution::Grid);
            let (end, _) = run(&search, |size| Seen::Peak(fixed + each * size as f64));
            let expected = 1 << limit.ilog2();
            prop_assert_eq!(end.largest, Some(BatchSize(expected)));
        }

        #[test]
        fn any_monotone_memory_is_bracketed(steps in proptest::collection::vec(1.0..1e3_f64, 1..40), limit in 1_u64..5000) {
            // Memory in stairs of any shape.
            let peak = |size: u64| -> f64 {
                let at = (size.min(4999) as usize * steps.len()) / 5000;
                steps[..=at].iter().sum()
            };
            let search = search(5000, peak(limit), Resolution::OneThirtySecond);
            let (end, looks) = run(&search, |size| Seen::Peak(peak(size)));
            let largest = end.largest.expect("the smallest fits").0;
            prop_assert!(peak(largest) <= search.usable_bytes);
            let next = largest + (largest / 32).max(1);
            prop_assert!(largest == 5000 || peak(next.min(5000)) > search.usable_bytes || looks.contains(&(largest + 1)));
        }
    }

    #[test]
    fn a_range_that_fits_is_proved_at_its_end() {
        let search = search(1000, 1e12, Resolution::OneThirtySecond);
        let (end, looks) = run(&search, |size| Seen::Peak(1e6 + 1e3 * size as f64));
        assert_eq!(end.largest, Some(BatchSize(1000)));
        assert_eq!(end.limited_by, LimitedBy::Range);
        assert_eq!(looks.last(), Some(&1000));
    }

    #[test]
    fn nothing_fits_after_one_look() {
        let search = search(1000, 1e3, Resolution::OneThirtySecond);
        let (end, looks) = run(&search, |_| Seen::OutOfMemory);
        assert_eq!(end.largest, None);
        assert_eq!(looks, [1]);
    }

    #[test]
    fn a_hole_is_walked_around_and_slowness_is_named() {
        let search = search(1 << 16, 1e9, Resolution::OneThirtySecond);
        let (end, looks) = run(&search, |size| match size {
            8 | 64 => Seen::Nothing,
            size if size > 3000 => Seen::TooSlow,
            size => Seen::Peak(1e6 + 1e3 * size as f64),
        });
        let largest = end.largest.expect("something fits").0;
        assert!(
            (2900..=3000).contains(&largest),
            "{largest} after {looks:?}"
        );
        assert_eq!(end.limited_by, LimitedBy::Time);
    }
}
