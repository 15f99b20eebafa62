//! The largest feasible batch size, and the one to start with when only throughput is known.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::memory_search::{LimitedBy, Search, SearchEnd, SearchStep, Seen};
use super::saturation::SATURATED_GAIN;
use super::throughput::{CONFIDENCE_PER_LOOK, draw_choices};
use super::{Evidence, ProbeRecord, ThroughputAnalysis, memory};
use crate::probe::{InfeasibleReason, Metric, ProbeKind, ProbeState};
use crate::study::{BatchSize, StudyDefinition};

/// What fits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Feasibility {
    /// The largest batch size that fits with the reserve left free; null when none does.
    pub largest_feasible: Option<BatchSize>,
    /// What limits it.
    pub limited_by: LimitedBy,
    /// Batch sizes that survived a confirmation: 200 steps and an evaluation within the limit.
    pub confirmed: Vec<BatchSize>,
    /// Whether the search is over; before, the largest so far.
    pub search_ended: bool,
}

/// The search that a study asks for; none while its device is not known.
pub fn search(definition: &StudyDefinition) -> Option<Search> {
    let budget = definition.device.resolved()?.memory_budget;
    let sizes = &definition.batch_sizes;
    Some(Search {
        min: sizes.min,
        max: sizes.max,
        max_from: sizes.max_from,
        usable_bytes: budget.as_f64() - memory::reserve(budget).as_f64(),
        resolution: sizes.resolution,
        grid: definition.grid_batch_sizes(),
        multiple_of: u64::from(definition.device.count.max(1)),
    })
}

/// What every ended memory probe and confirmation saw, and a smoke probe that hit a limit. A
/// confirmation that failed reopens the search below it.
pub fn sights(evidence: &Evidence) -> Vec<(BatchSize, Seen)> {
    evidence
        .probes
        .iter()
        .filter(|probe| match probe.kind() {
            ProbeKind::Memory | ProbeKind::Confirmation => true,
            ProbeKind::Smoke => probe.state == ProbeState::Infeasible,
            // These hold more than one batch, and so say nothing of what training needs.
            ProbeKind::InputPipeline | ProbeKind::GradientAccumulation => false,
            ProbeKind::StepTime | ProbeKind::Training => false,
            ProbeKind::LearningRateRange | ProbeKind::NoiseScale => false,
        })
        .filter_map(|probe| {
            let seen = match (probe.state, probe.infeasible) {
                (ProbeState::Succeeded, _) => probe
                    .figure(Metric::PeakMemory)
                    .map_or(Seen::Nothing, Seen::Peak),
                (ProbeState::Infeasible, Some(InfeasibleReason::OutOfMemory)) => Seen::OutOfMemory,
                (ProbeState::Infeasible, Some(InfeasibleReason::TooSlow)) => Seen::TooSlow,
                (state, _) if state.has_ended() => Seen::Nothing,
                _ => return None,
            };
            Some((probe.batch_size(), seen))
        })
        .collect()
}

/// What fits, as far as it is known.
pub fn feasibility(definition: &StudyDefinition, evidence: &Evidence) -> Option<Feasibility> {
    let search = search(definition)?;
    let seen = sights(evidence);
    if seen.is_empty() {
        return None;
    }
    let survived = |probe: &ProbeRecord| {
        let peak = probe.figure(Metric::PeakMemory);
        probe.succeeded() && peak.is_some_and(|peak| peak <= search.usable_bytes)
    };
    // Of several processes at one batch size every one must survive.
    let all_survived = |size: BatchSize| {
        evidence
            .of_kind(ProbeKind::Confirmation)
            .filter(|probe| probe.batch_size() == size && probe.state.has_ended())
            .all(survived)
    };
    let mut confirmed: Vec<BatchSize> = evidence
        .of_kind(ProbeKind::Confirmation)
        .filter(|probe| survived(probe))
        .map(ProbeRecord::batch_size)
        .filter(|size| all_survived(*size))
        .collect();
    confirmed.sort();
    confirmed.dedup();
    let (end, search_ended) = match search.next(&seen) {
        SearchStep::Done(end) => (end, true),
        SearchStep::Probe(_) => (largest_so_far(&search, &seen), false),
    };
    Some(Feasibility {
        largest_feasible: end.largest,
        limited_by: end.limited_by,
        search_ended,
        confirmed,
    })
}

fn largest_so_far(search: &Search, seen: &[(BatchSize, Seen)]) -> SearchEnd {
    // Exactly what the search would say if nothing more could be looked at.
    let unfit = seen
        .iter()
        .filter(|(_, it)| match it {
            Seen::Peak(peak) => *peak > search.usable_bytes,
            Seen::OutOfMemory | Seen::TooSlow => true,
            Seen::Nothing => false,
        })
        .map(|(size, _)| *size)
        .min();
    SearchEnd {
        largest: seen
            .iter()
            .filter(|(size, it)| {
                matches!(it, Seen::Peak(_)) && unfit.is_none_or(|unfit| *size < unfit)
            })
            .map(|(size, _)| *size)
            .max(),
        limited_by: LimitedBy::Memory,
    }
}

/// The batch size to start with when only throughput is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StartChoice {
    /// The largest feasible batch size whose last doubling surely gained more than 10%.
    pub batch_size: BatchSize,
    /// Probability that the rule would choose it if times were known exactly; null with one round.
    pub p_best: Option<f64>,
    /// Probability that its throughput is within 5% of the highest among the candidates; null with one round.
    pub p_within_5pct: Option<f64>,
    /// Others that the rule might choose, each with a probability of at least 0.2.
    pub near_ties: Vec<BatchSize>,
    /// Candidates that fit but gain too little over the one before.
    pub dropped: Vec<BatchSize>,
}

/// A choice at least this probable is a near tie.
const NEAR_TIE: f64 = 0.2;

/// The largest batch size that gains more than 10% a doubling over the best smaller one; `margin` is
/// taken off each ln gain first. Over the best, not over the one before: recovering from a dip is
/// no gain.
fn largest_that_gains(rates: &[(BatchSize, f64)], margin: f64) -> Option<BatchSize> {
    let (mut best, mut chosen) = (*rates.first()?, rates.first()?.0);
    for &(size, rate) in &rates[1..] {
        let doublings = (size.as_f64() / best.0.as_f64()).log2();
        let ln_gain = ((rate / best.1).ln() - margin) / doublings;
        if ln_gain > SATURATED_GAIN.ln() {
            chosen = size;
        }
        if rate > best.1 {
            best = (size, rate);
        }
    }
    Some(chosen)
}

/// Applies the rule: the largest feasible batch size whose last doubling gained more than 10%, the
/// interval's lower end deciding (the value itself with one round).
pub fn start_choice(throughput: &ThroughputAnalysis, seed: u64) -> Option<StartChoice> {
    let curve = throughput.curve()?;
    let margin = curve
        .design
        .difference_half_width(CONFIDENCE_PER_LOOK)
        .unwrap_or(0.0);
    let batch_size = largest_that_gains(&curve.rates, margin)?;
    let shares = draw_choices(&curve, seed, |rates| largest_that_gains(rates, 0.0));
    let of = |size: BatchSize| shares.iter().find(|(other, _, _)| *other == size);
    Some(StartChoice {
        batch_size,
        p_best: of(batch_size).map(|(_, picked, _)| *picked),
        p_within_5pct: of(batch_size).map(|(_, _, within)| *within),
        near_ties: shares
            .iter()
            .filter(|(size, picked, _)| *size != batch_size && *picked >= NEAR_TIE)
            .map(|(size, _, _)| *size)
            .collect(),
        dropped: throughput
            .points
            .iter()
            .map(|point| point.batch_size)
            .filter(|size| *size > batch_size)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(rates: &[(u64, f64)]) -> u64 {
        let rates: Vec<_> = rates
            .iter()
            .map(|(size, rate)| (BatchSize(*size), *rate))
            .collect();
        largest_that_gains(&rates, 0.0).expect("a choice").0
    }

    #[test]
    fn the_last_worthwhile_doubling_is_chosen() {
        assert_eq!(chosen(&[(8, 1.0), (16, 1.9), (32, 2.2), (64, 2.3)]), 32);
        assert_eq!(chosen(&[(8, 1.0)]), 8);
        assert_eq!(chosen(&[(8, 1.0), (16, 1.0)]), 8);
    }

    #[test]
    fn recovering_from_a_dip_is_no_gain() {
        let rates = [
            (256, 213.0),
            (512, 280.0),
            (1024, 316.0),
            (2048, 167.0),
            (4096, 141.0),
            (8192, 154.0),
            (16384, 192.0),
        ];
        assert_eq!(chosen(&rates), 1024);
        // A real rise beyond the dip counts, by what a doubling gains since the best.
        assert_eq!(chosen(&[(8, 1.0), (16, 0.8), (32, 1.5)]), 32);
    }
}
