//! Where throughput stops rising: the gain of each doubling, and the family of t(B) fits.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::throughput::CONFIDENCE_PER_LOOK;
use super::{Estimate, ThroughputAnalysis};
use crate::statistics::regression::{Loss, least_squares};
use crate::study::BatchSize;

/// What one doubling of the batch size brings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DoublingGain {
    /// B.
    pub from: BatchSize,
    /// The next batch size measured; the gain is scaled to a doubling when it is not 2·B.
    pub to: BatchSize,
    /// g(B) = thr(2B)/thr(B), from within-round differences.
    pub gain: Estimate,
    /// What that says.
    pub region: GainRegion,
}

/// What the gain of a doubling says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GainRegion {
    /// Lower end ≥ 1.8: doubling the batch nearly doubles throughput.
    Unsaturated,
    /// The interval lies inside (1.10, 1.8).
    Transition,
    /// Upper end ≤ 1.10, here and beside it over two doublings in a row at least (at the end of the
    /// measured range the fitted curve may stand in for the second).
    Saturated,
    /// The interval is too wide to tell.
    Undetermined,
}

/// t(B) = (α^q + (βB)^q)^{1/q}: q = 1 adds fixed and per-example time, q = 16 takes nearly the larger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TimeModel {
    /// α: time of a step however small the batch, seconds.
    pub fixed_secs: f64,
    /// β: time an example adds, seconds.
    pub secs_per_example: f64,
    /// q, the best of 1, 1.5, 2, 4, 16.
    pub sharpness: f64,
    /// α/β: the batch size where both are equal.
    pub knee: f64,
    /// Largest |ln(measured/fitted)|: large when the curve is not of this family.
    pub max_residual: f64,
}

/// Where throughput stops rising.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SaturationAnalysis {
    /// Whether it is read from steps on synthetic data, without the input pipeline; otherwise from training
    /// as it is, where a slow input pipeline may look like a busy device.
    pub of_synthetic_data: bool,
    /// Each doubling, by batch size.
    pub gains: Vec<DoublingGain>,
    /// B_sat: the smallest batch size from which two doublings in a row gain ≤ 10% and none later gains
    /// more than 10% over what was reached; null if there is none.
    pub saturation_batch_size: Option<BatchSize>,
    /// The batch size of the highest measured throughput.
    pub peak_batch_size: BatchSize,
    /// The highest measured throughput, examples per second.
    pub highest_examples_per_sec: Option<f64>,
    /// Batch sizes after which throughput falls, its interval wholly below 1: reported as measured.
    pub dips: Vec<BatchSize>,
    /// The fit; null when the batch sizes span less than a factor of 8.
    pub time_model: Option<TimeModel>,
}

/// A doubling that surely gains at least this nearly doubles throughput.
pub const UNSATURATED_GAIN: f64 = 1.8;
/// A doubling that surely gains at most this is not worth its memory.
pub const SATURATED_GAIN: f64 = 1.10;
/// One flat doubling may be chance or a shelf; saturation takes two in a row.
const SATURATED_DOUBLINGS: f64 = 2.0;
/// Slack for counting doublings in floating point.
const ROUNDING: f64 = 1e-9;
/// The t(B) family is fitted only over a range at least this wide.
const MIN_FIT_RANGE: f64 = 8.0;
/// Two parameters and a sharpness need more points than two.
const MIN_FIT_POINTS: usize = 3;
/// Sharpnesses tried: 1 adds the two times, 16 takes nearly the larger.
const SHARPNESSES: [f64; 5] = [1.0, 1.5, 2.0, 4.0, 16.0];
/// Residuals of ln t beyond this count linearly.
const FIT_SCALE: f64 = 0.02;
/// A fit with a larger residual does not speak for batch sizes beyond the measured ones.
const TRUSTED_RESIDUAL: f64 = 0.05;

impl TimeModel {
    /// t(B), seconds.
    pub fn time_per_step(&self, batch_size: f64) -> f64 {
        ln_time(
            self.sharpness,
            [self.fixed_secs.ln(), self.secs_per_example.ln()],
            batch_size.ln(),
        )
        .0
        .exp()
    }

    /// thr(2B)/thr(B).
    pub fn doubling_gain(&self, batch_size: f64) -> f64 {
        2.0 * self.time_per_step(batch_size) / self.time_per_step(2.0 * batch_size)
    }
}

/// ln t at ln B, and its gradient by ln α and ln β.
fn ln_time(sharpness: f64, [ln_alpha, ln_beta]: [f64; 2], ln_batch: f64) -> (f64, [f64; 2]) {
    let fixed = sharpness * ln_alpha;
    let growing = sharpness * (ln_beta + ln_batch);
    let larger = fixed.max(growing);
    let sum = (fixed - larger).exp() + (growing - larger).exp();
    let share = (fixed - larger).exp() / sum;
    ((larger + sum.ln()) / sharpness, [share, 1.0 - share])
}

/// Fits the family to (batch size, t) and keeps the best sharpness. `None` when the batch sizes span
/// less than a factor of 8, or fewer than three were measured.
pub fn fit_time_model(points: &[(BatchSize, f64)]) -> Option<TimeModel> {
    let (first, last) = (points.first()?, points.last()?);
    if points.len() < MIN_FIT_POINTS || last.0.as_f64() < MIN_FIT_RANGE * first.0.as_f64() {
        return None;
    }
    let logs: Vec<(f64, f64)> = points
        .iter()
        .map(|(size, time)| (size.as_f64().ln(), time.ln()))
        .collect();
    let start = [first.1.ln(), last.1.ln() - last.0.as_f64().ln()];
    let (sharpness, fit) = SHARPNESSES
        .iter()
        .filter_map(|&sharpness| {
            least_squares(start, Loss::SoftL1(FIT_SCALE), |parameters, push| {
                for (ln_batch, ln_t) in &logs {
                    let (value, slope) = ln_time(sharpness, parameters, *ln_batch);
                    push(value - ln_t, slope);
                }
            })
            .map(|fit| (sharpness, fit))
        })
        .min_by(|a, b| a.1.loss.total_cmp(&b.1.loss))?;
    let [ln_alpha, ln_beta] = fit.parameters;
    // A curve with no fixed part, or no growing one, has no knee to tell of.
    let is_number = |ln: f64| ln.exp().is_normal();
    if ![ln_alpha, ln_beta, ln_alpha - ln_beta]
        .into_iter()
        .all(is_number)
    {
        return None;
    }
    let max_residual = logs
        .iter()
        .map(|(ln_batch, ln_t)| (ln_t - ln_time(sharpness, fit.parameters, *ln_batch).0).abs())
        .fold(0.0, f64::max);
    Some(TimeModel {
        fixed_secs: ln_alpha.exp(),
        secs_per_example: ln_beta.exp(),
        sharpness,
        knee: (ln_alpha - ln_beta).exp(),
        max_residual,
    })
}

/// Reads the throughput curve. `None` with fewer than two batch sizes.
pub fn analyze(throughput: &ThroughputAnalysis) -> Option<SaturationAnalysis> {
    let points = &throughput.points;
    if points.len() < 2 {
        return None;
    }
    let measured = throughput.curve()?;
    let is_synthetic = measured.is_synthetic;
    let curve = Curve {
        half_width: measured.design.difference_half_width(CONFIDENCE_PER_LOOK),
        points: measured.rates,
    };
    let times: Vec<(BatchSize, f64)> = curve
        .points
        .iter()
        .map(|(size, rate)| (*size, size.as_f64() / rate))
        .collect();
    let time_model = fit_time_model(&times);
    let saturated = curve.saturated(time_model.as_ref());
    let gains: Vec<DoublingGain> = (1..points.len())
        .map(|to| {
            let gain = curve.gain(to - 1, to);
            DoublingGain {
                from: points[to - 1].batch_size,
                to: points[to].batch_size,
                gain,
                region: region(&gain, saturated.iter().any(|run| run.contains(&(to - 1)))),
            }
        })
        .collect();
    let peak = curve
        .points
        .iter()
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(size, _)| *size)?;
    Some(SaturationAnalysis {
        of_synthetic_data: is_synthetic,
        saturation_batch_size: saturated
            .iter()
            .find(|run| !curve.rises_after(run.end))
            .map(|run| points[run.start].batch_size),
        dips: gains
            .iter()
            .filter(|gain| gain.gain.ci_upper.is_some_and(|upper| upper < 1.0))
            .map(|gain| gain.from)
            .collect(),
        gains,
        peak_batch_size: peak,
        highest_examples_per_sec: curve
            .points
            .iter()
            .map(|(_, rate)| *rate)
            .max_by(f64::total_cmp),
        time_model,
    })
}

/// Throughput by batch size, with the half-width of the logarithm of any ratio of two.
#[derive(Debug)]
struct Curve {
    points: Vec<(BatchSize, f64)>,
    half_width: Option<f64>,
}

impl Curve {
    /// Doublings of the batch size between two points.
    fn doublings(&self, from: usize, to: usize) -> f64 {
        (self.points[to].0.as_f64() / self.points[from].0.as_f64()).log2()
    }

    /// thr(to)/thr(from), scaled to one doubling.
    fn gain(&self, from: usize, to: usize) -> Estimate {
        let doublings = self.doublings(from, to);
        Estimate::of_ln(
            (self.points[to].1 / self.points[from].1).ln() / doublings,
            self.half_width.map(|half| half / doublings),
        )
    }

    fn is_flat(&self, from: usize) -> bool {
        let upper = self.gain(from, from + 1).ci_upper;
        upper.is_some_and(|upper| upper <= SATURATED_GAIN)
    }

    /// Runs of neighbouring gains (by the index of the first point) that surely are ≤ 10% a doubling,
    /// over two doublings at least. At the end of the range one doubling is enough when the fitted
    /// curve, being close to every point, says the same of it and of the next: memory often ends
    /// the range where the second would have been.
    fn saturated(&self, model: Option<&TimeModel>) -> Vec<Range<usize>> {
        let last = self.points.len() - 1;
        let mut runs = Vec::new();
        let mut start = 0;
        while start < last {
            let mut end = start;
            while end < last && self.is_flat(end) {
                end += 1;
            }
            let doublings = self.doublings(start, end);
            let goes_on = || {
                let model = model.filter(|model| model.max_residual <= TRUSTED_RESIDUAL);
                end == last && model.is_some_and(|model| self.model_agrees(model, start))
            };
            if doublings >= SATURATED_DOUBLINGS - ROUNDING
                || (doublings >= 1.0 - ROUNDING && goes_on())
            {
                runs.push(start..end);
            }
            start = end.max(start + 1);
        }
        runs
    }

    /// Whether the fitted curve gains ≤ 10% in the doubling from here, and in the one from the last point.
    fn model_agrees(&self, model: &TimeModel, from: usize) -> bool {
        let flat =
            |point: usize| model.doubling_gain(self.points[point].0.as_f64()) <= SATURATED_GAIN;
        flat(from) && flat(self.points.len() - 1)
    }

    /// Whether a later gain surely takes throughput more than 10% a doubling above all it had been
    /// (recovering from a dip does not count): then it was a shelf, not the end.
    fn rises_after(&self, point: usize) -> bool {
        (point + 1..self.points.len()).any(|to| {
            let highest = self.points[..to].iter().map(|(_, rate)| *rate);
            let ln_rise = (self.points[to].1 / highest.fold(0.0, f64::max)).ln();
            let sure = self.half_width.map(|half| ln_rise - half);
            let doublings = self.doublings(to - 1, to);
            sure.is_some_and(|ln_rise| ln_rise > doublings * SATURATED_GAIN.ln())
        })
    }
}

fn region(gain: &Estimate, saturated: bool) -> GainRegion {
    match (gain.ci_lower, gain.ci_upper) {
        (Some(lower), _) if lower >= UNSATURATED_GAIN => GainRegion::Unsaturated,
        _ if saturated => GainRegion::Saturated,
        (Some(lower), Some(upper)) if lower > SATURATED_GAIN && upper < UNSATURATED_GAIN => {
            GainRegion::Transition
        }
        _ => GainRegion::Undetermined,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::analysis::fixtures::rounds;
    use crate::analysis::throughput;

    /// The analysis of a curve measured in three rounds that scatter by at most ±0.5%.
    fn read(sizes: &[u64], secs: impl Fn(u64) -> f64) -> SaturationAnalysis {
        let evidence = rounds(sizes, 3, |size, round| {
            let phase = (size % 7 + u64::from(size.trailing_zeros() + round * 5)) % 11;
            secs(size) * (1.0 + (phase as f64 - 5.0) * 1e-3)
        });
        let throughput = throughput::analyze(&evidence).expect("a throughput analysis");
        analyze(&throughput).expect("an analysis")
    }

    fn max_form(size: u64) -> f64 {
        1e-3 * (size as f64 / 256.0).max(1.0)
    }

    fn additive(size: u64) -> f64 {
        1e-3 * (size as f64 / 256.0 + 1.0)
    }

    fn grid(to: u64) -> Vec<u64> {
        powers().take_while(|size| *size <= to).collect()
    }

    fn gain_from(analysis: &SaturationAnalysis, from: u64) -> &DoublingGain {
        let found = analysis.gains.iter().find(|gain| gain.from.0 == from);
        found.expect("a gain")
    }

    #[test]
    fn a_sharp_knee_is_where_saturation_begins() {
        let analysis = read(&grid(4096), max_form);
        assert_eq!(analysis.saturation_batch_size, Some(BatchSize(256)));
        for from in [1, 8, 128] {
            assert_eq!(gain_from(&analysis, from).region, GainRegion::Unsaturated);
        }
        for from in [256, 512, 2048] {
            assert_eq!(gain_from(&analysis, from).region, GainRegion::Saturated);
        }
        let model = analysis.time_model.expect("a model");
        assert_eq!(model.sharpness, 16.0);
        assert!((model.knee / 256.0 - 1.0).abs() < 0.05, "{model:?}");
    }

    #[test]
    fn the_fitted_curve_stands_in_for_the_doubling_that_memory_cuts_off() {
        let analysis = read(&grid(4096), additive);
        assert_eq!(analysis.saturation_batch_size, Some(BatchSize(2048)));
        assert_eq!(gain_from(&analysis, 2048).region, GainRegion::Saturated);
        assert_eq!(gain_from(&analysis, 256).region, GainRegion::Transition);
        // Without the last doubling nothing has saturated yet.
        assert_eq!(read(&grid(2048), additive).saturation_batch_size, None);
        // With the next, two measured doublings show it.
        let wider = read(&[&grid(4096)[..], &[8192]].concat(), additive);
        assert_eq!(wider.saturation_batch_size, Some(BatchSize(2048)));
    }

    #[test]
    fn one_round_tells_no_region() {
        let evidence = rounds(&grid(4096), 1, |size, _| max_form(size));
        let throughput = throughput::analyze(&evidence).expect("a throughput analysis");
        let analysis = analyze(&throughput).expect("an analysis");
        assert_eq!(analysis.saturation_batch_size, None);
        assert!(
            analysis
                .gains
                .iter()
                .all(|gain| gain.region == GainRegion::Undetermined && gain.gain.ci_lower.is_none())
        );
    }

    #[test]
    fn a_dip_stays_visible_and_recovering_from_it_is_no_rise() {
        let secs = |size| max_form(size) * if size == 1024 { 1.4 } else { 1.0 };
        let analysis = read(&grid(4096), secs);
        assert_eq!(analysis.dips, [BatchSize(512)]);
        assert!((gain_from(&analysis, 512).gain.value - 1.0 / 1.4).abs() < 0.02);
        assert!((gain_from(&analysis, 1024).gain.value - 1.4).abs() < 0.03);
        assert_eq!(analysis.saturation_batch_size, Some(BatchSize(256)));
        assert!(analysis.time_model.expect("a model").max_residual > 0.2);
    }

    #[test]
    fn a_shelf_is_not_the_end() {
        // Twice as fast from 2048 on: another kernel, say.
        let secs = |size| max_form(size) / if size >= 2048 { 2.0 } else { 1.0 };
        let analysis = read(&grid(4096), secs);
        assert_eq!(analysis.saturation_batch_size, None);
        assert!(analysis.peak_batch_size >= BatchSize(2048));
    }

    #[test]
    fn gains_are_scaled_to_a_doubling_when_the_grid_is_not_powers_of_two() {
        // t constant: throughput ∝ B, so every doubling gains 2, whatever the steps of the grid.
        let analysis = read(&[48, 96, 144, 600], |_| 1e-3);
        for gain in &analysis.gains {
            assert!((gain.gain.value - 2.0).abs() < 0.06, "{gain:?}");
        }
        // t ∝ B: nothing is gained. Four steps of √2 make two doublings.
        let flat = read(&[64, 90, 128, 181, 256], |size| size as f64 * 1e-5);
        assert_eq!(flat.saturation_batch_size, Some(BatchSize(64)));
        let one_doubling = read(&[64, 90, 128], |size| size as f64 * 1e-5);
        assert_eq!(one_doubling.saturation_batch_size, None);
    }

    #[test]
    fn a_curve_without_a_knee_has_finite_figures_or_no_model() {
        for secs in [(|_| 1e-3) as fn(u64) -> f64, |size| size as f64 * 1e-5] {
            let analysis = read(&grid(4096), secs);
            let json = serde_json::to_string(&analysis).expect("JSON");
            let again: SaturationAnalysis = serde_json::from_str(&json).expect("the same");
            assert_eq!(again.time_model.is_some(), analysis.time_model.is_some());
        }
    }

    fn powers() -> impl Iterator<Item = u64> {
        (0..13).map(|power| 1 << power)
    }

    proptest! {
        #[test]
        fn a_known_curve_is_found_again(
            knee in 8.0..1024.0_f64,
            alpha in 1e-4..1e-1_f64,
            which in 0_usize..5,
        ) {
            let sharpness = SHARPNESSES[which];
            let parameters = [alpha.ln(), (alpha / knee).ln()];
            let points: Vec<_> = powers()
                .map(|size| (BatchSize(size), ln_time(sharpness, parameters, (size as f64).ln()).0.exp()))
                .collect();
            let model = fit_time_model(&points).expect("a model");
            prop_assert_eq!(model.sharpness, sharpness);
            prop_assert!((model.knee / knee - 1.0).abs() < 0.01, "{:?}", model);
            prop_assert!(model.max_residual < 1e-3);
        }
    }

    #[test]
    fn a_narrow_range_has_no_model() {
        let points = [
            (BatchSize(8), 1.0),
            (BatchSize(16), 1.1),
            (BatchSize(32), 1.2),
        ];
        assert_eq!(fit_time_model(&points), None);
    }
}
