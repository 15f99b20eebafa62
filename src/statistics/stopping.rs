//! When to stop timing blocks within one child.
//!
//! Sampling goes on until the median and the mean are known well enough *and* the series has stopped
//! drifting, at two looks in a row: a single look stops on luck. In the simulated worlds of
//! `tests/simulations/time_per_step.rs` the median is then within 2% of the truth in 99.3% of runs
//! or more; where the series itself drifts by 10%, in 94.6%. Looks get further apart by a constant
//! factor, so their number stays small.
//!
//! The interval here only stops the sampling. The one that is published comes from several children
//! ([`blocked`](super::blocked)), because two children differ by more than the blocks of one.

use super::intervals::{batch_half_width, mean, median, of_batches};

/// When the sampling of one child may stop. Half-widths are of 95% intervals, relative to the value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StoppingRule {
    /// Blocks before the first look.
    pub first_look_blocks: u64,
    /// Factor between the blocks at one look and at the next.
    pub growth: f64,
    /// Blocks at most, dropped ones included.
    pub max_blocks: u64,
    /// Half-width of the median that is narrow enough.
    pub median_half_width: f64,
    /// Half-width of the mean that is narrow enough.
    pub mean_half_width: f64,
    /// How far the medians of the first and the last third may differ, relative.
    pub drift: f64,
}

/// What to do after a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Time another block.
    Continue,
    /// Known well enough.
    Converged,
    /// The cap on blocks was reached first.
    CapReached,
}

/// What the blocks say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleSummary {
    /// Median over the blocks that count, seconds.
    pub median: f64,
    /// Mean over the blocks that count, seconds.
    pub mean: f64,
    /// Half-width of the median's interval, relative; `None` with too few blocks.
    pub median_half_width: Option<f64>,
    /// Half-width of the mean's interval, relative; `None` with too few blocks.
    pub mean_half_width: Option<f64>,
    /// Blocks that count.
    pub blocks: u64,
    /// Blocks dropped from the beginning because the series drifted.
    pub dropped: u64,
    /// Whether the rule was content.
    pub converged: bool,
}

/// Looks in a row that must be good: at one, luck is enough.
const GOOD_LOOKS: u32 = 2;

/// With fewer blocks, two a batch, there is no interval and nothing is dropped.
const MIN_BLOCKS: usize = 40;

/// Margin of a drift, in half-widths of the whole series' median: 0.3 standard errors of the difference of
/// two thirds' medians, which is √6 of the whole median's; a half-width is 2.09 of those. Chosen with
/// `tests/simulations/time_per_step.rs`: without it 5% more of the drifting runs stop too early, with
/// twice as much a noisy child rarely stops before its cap.
const DRIFT_MARGIN: f64 = 0.35;

/// Standard errors beyond which a drift is not noise.
const SURE_DRIFT: f64 = 3.0;

/// Part of the series that is dropped when it drifts: 1/4, the oldest. Not before that is more than the
/// noise of a series that is not known well yet.
const DROPPED_PART: usize = 4;

/// Collects the time per step of each block and says when there are enough.
#[derive(Debug, Clone)]
pub struct BlockSampler {
    rule: StoppingRule,
    values: Vec<f64>,
    dropped: u64,
    next_look: u64,
    good_looks: u32,
    decision: Decision,
}

impl BlockSampler {
    /// An empty sample.
    pub fn new(rule: StoppingRule) -> Self {
        Self {
            rule,
            values: Vec::new(),
            dropped: 0,
            next_look: rule.first_look_blocks.max(1),
            good_looks: 0,
            decision: Decision::Continue,
        }
    }

    /// Adds the time per step of one block, seconds, and looks when a look is due. What it has
    /// decided stays so: later blocks count, but are not looked at.
    pub fn push(&mut self, time_per_step_secs: f64) -> Decision {
        self.values.push(time_per_step_secs);
        if self.decision != Decision::Continue {
            return self.decision;
        }
        let timed = self.values.len() as u64 + self.dropped;
        let at_cap = timed >= self.rule.max_blocks;
        if timed >= self.next_look || at_cap {
            self.look();
            // A float beyond the range of u64 saturates, a growth of 1 or less still moves on.
            self.next_look = ((timed as f64 * self.rule.growth).ceil() as u64).max(timed + 1);
        }
        if self.good_looks >= GOOD_LOOKS {
            self.decision = Decision::Converged;
        } else if at_cap {
            self.decision = Decision::CapReached;
        }
        self.decision
    }

    /// Counts a good look, or starts again; drops the oldest quarter of a series that drifts.
    fn look(&mut self) {
        let steady = self.drift().is_some_and(|drift| drift <= self.rule.drift);
        if steady && self.is_narrow() {
            self.good_looks += 1;
            return;
        }
        self.good_looks = 0;
        if !steady && (self.is_narrow() || self.drifts_surely()) && self.values.len() >= MIN_BLOCKS
        {
            let oldest = self.values.len() / DROPPED_PART;
            self.values.drain(..oldest);
            self.dropped += oldest as u64;
        }
    }

    /// |median of the first third / median of the last third − 1|, with a margin for its own scatter: a
    /// series that drifts must not be let through because noise happens to hide it.
    fn drift(&self) -> Option<f64> {
        let third = self.values.len() / 3;
        let first = median(&self.values[..third])?;
        let last = median(&self.values[self.values.len() - third..])?;
        let margin = relative_half_width(&self.values, median).unwrap_or(0.0) * DRIFT_MARGIN;
        Some((first / last - 1.0).abs() + margin)
    }

    /// Whether the medians of the first and the last third differ by more than noise explains: by three
    /// standard errors, taken from the differences of neighbouring batches, which a drift hardly changes
    /// (von Neumann 1941).
    fn drifts_surely(&self) -> bool {
        let Some(batches) = of_batches(&self.values, median) else {
            return false;
        };
        let third = batches.len() / 3;
        let (first, last) = (&batches[..third], &batches[batches.len() - third..]);
        let squares: f64 = batches
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).powi(2))
            .sum();
        let variance = squares / (2.0 * (batches.len() - 1) as f64);
        let error = (2.0 * variance / third as f64).sqrt();
        mean(first)
            .zip(mean(last))
            .is_some_and(|(first, last)| (first - last).abs() > SURE_DRIFT * error)
    }

    fn is_narrow(&self) -> bool {
        let within = |half_width: Option<f64>, limit| half_width.is_some_and(|half| half <= limit);
        within(
            relative_half_width(&self.values, median),
            self.rule.median_half_width,
        ) && within(
            relative_half_width(&self.values, mean),
            self.rule.mean_half_width,
        )
    }

    /// What the blocks so far say; `None` before the first.
    pub fn summary(&self) -> Option<SampleSummary> {
        Some(SampleSummary {
            median: median(&self.values)?,
            mean: mean(&self.values)?,
            median_half_width: relative_half_width(&self.values, median),
            mean_half_width: relative_half_width(&self.values, mean),
            blocks: self.values.len() as u64,
            dropped: self.dropped,
            converged: self.decision == Decision::Converged,
        })
    }
}

/// Half-width of the interval of a statistic of the series, relative to it.
fn relative_half_width(series: &[f64], statistic: fn(&[f64]) -> Option<f64>) -> Option<f64> {
    let value = statistic(series)?;
    let half_width = batch_half_width(series, statistic)? / value;
    half_width.is_finite().then_some(half_width)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: StoppingRule = StoppingRule {
        first_look_blocks: 50,
        growth: 1.25,
        max_blocks: 3000,
        median_half_width: 0.02,
        mean_half_width: 0.05,
        drift: 0.015,
    };

    /// Blocks pushed until the rule decides, its decision, and the summary then.
    fn run(rule: StoppingRule, series: impl Fn(u64) -> f64) -> (u64, Decision, SampleSummary) {
        let mut sampler = BlockSampler::new(rule);
        for block in 0..=rule.max_blocks {
            let decision = sampler.push(series(block));
            if decision != Decision::Continue {
                let summary = sampler.summary().expect("blocks");
                return (block + 1, decision, summary);
            }
        }
        panic!("the cap did not hold");
    }

    #[test]
    fn a_steady_series_stops_at_the_second_look_and_not_at_the_first() {
        let (blocks, decision, summary) = run(RULE, |_| 0.01);
        assert_eq!((blocks, decision), (63, Decision::Converged));
        assert!(summary.converged);
        assert_eq!(summary.median, 0.01);
        assert!(summary.median_half_width.expect("a half-width") < 1e-12);
        assert_eq!(summary.dropped, 0);
    }

    #[test]
    fn the_slow_beginning_of_a_series_is_dropped() {
        let (_, decision, summary) = run(RULE, |block| if block < 40 { 0.02 } else { 0.01 });
        assert_eq!(decision, Decision::Converged);
        assert!(summary.dropped >= 30, "{summary:?}");
        assert_eq!(summary.median, 0.01);
        assert!((summary.mean / 0.01 - 1.0).abs() < 0.05, "{summary:?}");
    }

    #[test]
    fn a_series_that_keeps_drifting_never_converges() {
        let (blocks, decision, summary) = run(RULE, |block| 1.002_f64.powi(block as i32));
        assert_eq!((blocks, decision), (3000, Decision::CapReached));
        assert!(!summary.converged);
        assert_eq!(summary.blocks + summary.dropped, 3000);
    }

    #[test]
    fn a_scattered_series_takes_longer_or_reaches_the_cap() {
        // Alternates in a pattern much longer than a batch of the first looks.
        let wave = |block: u64| 1.0 + 0.3 * (block as f64 / 150.0).sin();
        let (blocks, decision, _) = run(RULE, wave);
        assert!(blocks > 500 || decision == Decision::CapReached, "{blocks}");
    }

    #[test]
    fn few_blocks_have_a_median_but_no_interval() {
        let mut sampler = BlockSampler::new(RULE);
        assert_eq!(sampler.summary(), None);
        for _ in 0..39 {
            assert_eq!(sampler.push(1.0), Decision::Continue);
        }
        let summary = sampler.summary().expect("blocks");
        assert_eq!(summary.median, 1.0);
        assert_eq!(summary.median_half_width, None);
        assert!(!summary.converged);
    }

    #[test]
    fn a_decision_stands() {
        let rule = StoppingRule {
            max_blocks: 10,
            ..RULE
        };
        let mut sampler = BlockSampler::new(rule);
        let decisions: Vec<Decision> = (0..200).map(|_| sampler.push(1.0)).collect();
        assert_eq!(decisions[8], Decision::Continue);
        assert!(decisions[9..].iter().all(|it| *it == Decision::CapReached));
        let summary = sampler.summary().expect("blocks");
        assert_eq!(summary.blocks, 200);
        assert!(!summary.converged);
    }

    #[test]
    fn rules_that_make_no_sense_still_end() {
        for growth in [f64::NAN, 0.0, f64::INFINITY] {
            let rule = StoppingRule {
                first_look_blocks: 0,
                growth,
                max_blocks: 100,
                ..RULE
            };
            let (blocks, _, _) = run(rule, |_| 1.0);
            assert!(blocks <= 100);
        }
    }
}
