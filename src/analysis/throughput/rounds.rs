//! Which rounds and batch sizes make a complete table, and which rounds the canary speaks against.

use std::collections::{BTreeMap, BTreeSet};

use crate::analysis::{Evidence, ProbeRecord};
use crate::probe::{Metric, ProbeKind, ProbeState};
use crate::statistics::intervals::median;
use crate::study::BatchSize;

/// Rounds that an analysis wants: with fewer, one off round could not be told from the usual ones.
pub const MIN_ROUNDS: usize = 3;

/// A canary further from its usual time than this means that the host was not as before.
const CANARY_TOLERANCE: f64 = 0.05;

/// One succeeded child.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell<'a> {
    pub probe: &'a ProbeRecord,
    /// Within-run median of the time per step, seconds.
    pub median: f64,
    /// Within-run mean of the time per step, seconds.
    pub mean: f64,
    /// Within-run median of the time per step on synthetic data, seconds; none where it was not timed.
    pub synthetic: Option<f64>,
}

impl<'a> Cell<'a> {
    fn of(probe: &'a ProbeRecord) -> Option<Self> {
        let time = |metric| {
            probe
                .figure(metric)
                .filter(|secs| secs.is_finite() && *secs > 0.0)
        };
        let median = time(Metric::TimePerStepMedian).filter(|_| probe.succeeded())?;
        Some(Self {
            probe,
            median,
            mean: time(Metric::TimePerStepMean).unwrap_or(median),
            synthetic: time(Metric::SyntheticTimePerStepMedian),
        })
    }
}

/// The probes of rounds in which every probe has ended.
fn ended_rounds(evidence: &Evidence) -> impl Iterator<Item = &ProbeRecord> {
    let open: BTreeSet<u32> = evidence
        .of_kind(ProbeKind::StepTime)
        .filter(|probe| !probe.state.has_ended())
        .map(|probe| probe.spec.replicate)
        .collect();
    evidence
        .of_kind(ProbeKind::StepTime)
        .filter(move |probe| !open.contains(&probe.spec.replicate))
}

/// Rounds whose canary, a fixed reference step that every child times first, took over 5% more or
/// less than its median over rounds: the host was not as before. The plan repeats them, within
/// bounds; the analysis leaves them out when at least three others remain.
///
/// Rounds with open probes are not judged, nor are fewer than three rounds: of two that differ,
/// either may be the usual one.
pub fn rounds_off(evidence: &Evidence) -> Vec<u32> {
    let mut by_round = BTreeMap::<u32, Vec<f64>>::new();
    for probe in ended_rounds(evidence).filter(|probe| probe.succeeded()) {
        if let Some(canary) = probe.figure(Metric::CanaryTimePerStep) {
            by_round
                .entry(probe.spec.replicate)
                .or_default()
                .push(canary);
        }
    }
    let canaries: Vec<(u32, f64)> = by_round
        .into_iter()
        .filter_map(|(round, times)| Some((round, median(&times)?)))
        .collect();
    let times: Vec<f64> = canaries.iter().map(|(_, time)| *time).collect();
    let Some(usual) = median(&times).filter(|_| times.len() >= MIN_ROUNDS) else {
        return Vec::new();
    };
    canaries
        .into_iter()
        .filter(|(_, time)| (time / usual - 1.0).abs() > CANARY_TOLERANCE)
        .map(|(round, _)| round)
        .collect()
}

/// The children of ended rounds, by batch size and round.
#[derive(Debug, Clone, Default)]
pub(super) struct Timings<'a> {
    cells: BTreeMap<BatchSize, BTreeMap<u32, Cell<'a>>>,
    /// Batch sizes with a child that did not do what it was asked.
    failed: BTreeSet<BatchSize>,
}

/// Batch sizes and rounds in which each of them was timed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub sizes: Vec<BatchSize>,
    pub rounds: Vec<u32>,
}

impl<'a> Timings<'a> {
    pub fn read(evidence: &'a Evidence) -> Self {
        let mut timings = Self::default();
        for probe in ended_rounds(evidence) {
            let size = probe.batch_size();
            if let Some(cell) = Cell::of(probe) {
                timings
                    .cells
                    .entry(size)
                    .or_default()
                    .insert(probe.spec.replicate, cell);
            } else if probe.state != ProbeState::Cancelled {
                timings.failed.insert(size);
            }
        }
        timings
    }

    /// Without some rounds.
    pub fn without(&self, rounds: &[u32]) -> Self {
        let mut kept = self.clone();
        for cells in kept.cells.values_mut() {
            cells.retain(|round, _| !rounds.contains(round));
        }
        kept.cells.retain(|_, cells| !cells.is_empty());
        kept
    }

    /// How many rounds have a child that succeeded.
    pub fn rounds(&self) -> usize {
        let rounds: BTreeSet<u32> = self
            .cells
            .values()
            .flat_map(|cells| cells.keys().copied())
            .collect();
        rounds.len()
    }

    /// The children of one batch size in these rounds.
    pub fn row(&self, size: BatchSize, rounds: &[u32]) -> Vec<Cell<'a>> {
        let Some(cells) = self.cells.get(&size) else {
            return Vec::new();
        };
        rounds
            .iter()
            .filter_map(|round| cells.get(round).copied())
            .collect()
    }

    /// The rounds in which every batch size was timed. Batch sizes some of whose children failed are
    /// left out, the worst first, as long as too few rounds are complete and that helps: they must
    /// not take the others with them. The others are left out only when no round is complete.
    pub fn table(&self) -> Table {
        let mut table = self.complete(self.cells.keys().copied().collect());
        let most = self.cells.values().map(BTreeMap::len).max().unwrap_or(0);
        let wanted = most.min(MIN_ROUNDS);
        let worth = |table: &Table| (table.rounds.len().min(wanted), table.sizes.len());
        let mut best = table.clone();
        while table.rounds.len() < wanted {
            let timed = |size: &&BatchSize| self.cells[*size].len();
            let failed = table.sizes.iter().filter(|size| self.failed.contains(size));
            let worst = match failed.min_by_key(timed) {
                None if table.rounds.is_empty() => table.sizes.iter().min_by_key(timed),
                failed => failed,
            };
            let Some(worst) = worst.copied().filter(|_| table.sizes.len() > 1) else {
                break;
            };
            table = self.complete(
                table
                    .sizes
                    .into_iter()
                    .filter(|size| *size != worst)
                    .collect(),
            );
            if worth(&table) > worth(&best) {
                best = table.clone();
            }
        }
        best
    }

    fn complete(&self, sizes: Vec<BatchSize>) -> Table {
        let mut rows = sizes.iter().map(|size| &self.cells[size]);
        let rounds = match rows.next() {
            None => Vec::new(),
            Some(first) => {
                let others: Vec<_> = rows.collect();
                first
                    .keys()
                    .copied()
                    .filter(|round| others.iter().all(|row| row.contains_key(round)))
                    .collect()
            }
        };
        Table { sizes, rounds }
    }
}
