//! Better than chance or not: what real digits and shuffled ones come to, over a hundred seeds, and that the losses
//! of single examples are those that the mean is of.

#![expect(clippy::print_stdout, reason = "the counts are what the test is for")]

use serde_json::json;
use trialhead::analysis::initial::{Control, Level, Skill};
use trialhead::probe::{Metric, Outcome, ProbeSpec, Task, TrainingRun};
use trialhead::study::{BuiltinDataset, Model, Optimizer, Workload};

use crate::{Ended, run, spec};

fn compared(max_steps: u64, shuffles_targets: bool) -> Task {
    Task::Training(TrainingRun {
        compares_with_chance: true,
        shuffles_targets,
        ..TrainingRun::new(max_steps, None, 1.05)
    })
}

fn skill(ended: &Ended) -> Skill {
    let (gain, error) = (
        ended.one(Metric::GainOverChance),
        ended.one(Metric::GainOverChanceError),
    );
    let chance = ended.one(Metric::ChanceLoss);
    Skill {
        value: gain / chance,
        standard_error: error / chance,
        z: gain / error,
        loss: ended.one(Metric::BestEvaluation),
        loss_error: Some(ended.one(Metric::BestEvaluationError)),
        chance,
        ideal: 0.0,
        accuracy: None,
    }
}

#[test]
fn row_52_shuffled_digits_are_chance_and_real_ones_are_reasonable() {
    let (mut better, mut leaks, mut reasonable) = (0, 0, 0);
    let mut largest = f64::NEG_INFINITY;
    for seed in 0..100 {
        let of = |shuffles| {
            let mut spec = spec(compared(150, shuffles));
            spec.workload.model = Model::mlp(vec![16]);
            spec.optimizer = Optimizer::nesterov(0.02, 0.9);
            spec.device.threads = 1;
            spec.seed = seed;
            let target = spec.workload.dataset.facts().target;
            let skill = skill(&run(&spec));
            (Level::of(&skill, &target), skill)
        };
        let (level, control) = of(true);
        better += usize::from(level != Level::Chance);
        leaks += usize::from(Control::is_leak(&control, 0.0, 1));
        largest = largest.max(control.value);
        reasonable += usize::from(of(false).0 == Level::Reasonable);
    }
    println!(
        "of 100 seeds: shuffled called better than chance {better}, called a leak {leaks} (largest skill {largest:.3}); real ones reasonable {reasonable}"
    );
    assert!(better <= 1 && leaks <= 1, "{better} and {leaks} of 100");
    assert_eq!(reasonable, 100);
}

#[test]
fn the_losses_of_single_examples_add_up_to_the_loss_in_every_kind_of_task() {
    let check = |spec: &ProbeSpec| {
        let ended = run(spec);
        assert_eq!(ended.outcome(), Outcome::Succeeded, "{ended:?}");
        let (gain, chance) = (
            ended.one(Metric::GainOverChance),
            ended.one(Metric::ChanceLoss),
        );
        let best = ended.one(Metric::BestEvaluation);
        assert!(
            (chance - gain - best).abs() < 1e-5 * chance,
            "{chance} − {gain} is not {best}"
        );
        assert!(ended.one(Metric::GainOverChanceError) > 0.0);
        let late = ended.one(Metric::LateGain);
        assert!((0.0..=1.0).contains(&late), "{late}");
    };
    check(&spec(compared(60, false)));
    let mut values = spec(compared(60, false));
    values.workload = Workload::new(
        BuiltinDataset::LinearTeacher {
            examples: 500,
            features: 4,
            outputs: 2,
            noise_deviation: 0.1,
            seed: 1,
        }
        .into(),
        Model::mlp(vec![8]),
    );
    check(&values);
    let mut text = spec(compared(40, false));
    text.workload = Workload::new(
        serde_json::from_value(json!({
            "builtin": "markov_text", "examples": 200, "sequence_length": 8, "vocabulary": 6
        }))
        .expect("a data set"),
        serde_json::from_value(json!({
            "family": "transformer_lm", "width": 8, "depth": 1, "heads": 2
        }))
        .expect("a model"),
    );
    text.optimizer = Optimizer::adamw();
    check(&text);
    // And of a shuffled text nothing is learned.
    text.task = compared(200, true);
    let control = skill(&run(&text));
    assert!(!Control::is_leak(&control, 0.0, 1), "{control:?}");
}

#[test]
fn comparing_with_chance_changes_no_other_bit_of_a_run() {
    let plain = run(&spec(Task::Training(TrainingRun::new(60, None, 1.05))));
    let compared = run(&spec(compared(60, false)));
    for metric in [Metric::BestEvaluation, Metric::LastLoss, Metric::BestStep] {
        assert_eq!(plain.one(metric), compared.one(metric), "{metric:?}");
    }
    assert!(plain.all(Metric::GainOverChance).is_empty());
}
