use serde_json::json;

use super::*;
use crate::study::{StudyRequest, resolve};

fn definition(body: serde_json::Value) -> StudyDefinition {
    let request: StudyRequest = serde_json::from_value(body).expect("a request");
    resolve(request, None).expect("known")
}

fn skill(value: f64, standard_error: f64) -> Skill {
    Skill {
        value,
        standard_error,
        z: value / standard_error,
        loss: 2.3 * (1.0 - value),
        loss_error: Some(2.3 * standard_error),
        chance: 2.3,
        ideal: 0.0,
        accuracy: Some(0.5),
    }
}

#[test]
fn row_52_a_level_needs_both_a_skill_that_matters_and_certainty() {
    let classes = Target::Classes { count: 10 };
    let text = Target::NextToken { vocabulary: 16 };
    for (value, error, target, level) in [
        (0.9, 0.01, classes, Level::Reasonable),
        (0.5, 0.01, classes, Level::Reasonable),
        (0.49, 0.01, classes, Level::Learning),
        (0.9, 0.2, classes, Level::Chance),
        (0.04, 0.001, classes, Level::Chance),
        (-0.3, 0.01, classes, Level::Chance),
        (0.15, 0.01, text, Level::Reasonable),
        (0.14, 0.01, text, Level::Learning),
    ] {
        assert_eq!(
            Level::of(&skill(value, error), &target),
            level,
            "{value} ± {error}"
        );
    }
}

#[test]
fn row_3_fifty_validation_examples_warn_and_two_thousand_do_not() {
    // The loss of an example scatters by 0.5; the target is 0.05 from the best that was reached.
    let study = |metric: &str, value: f64| {
        definition(json!({
            "workload": {
                "dataset": {"builtin": "synthetic"},
                "target": {"metric": metric, "value": value}
            }
        }))
    };
    let remark = |study: &StudyDefinition, examples: u64| {
        let reached = Skill {
            loss: 0.15,
            loss_error: Some(0.5 / (examples as f64).sqrt()),
            accuracy: Some(0.95),
            ..skill(0.9, 0.01)
        };
        evaluation_remark(study, &reached, examples).map(|caveat| caveat.code)
    };
    let too_small = Some("W_EVAL_TOO_SMALL".to_owned());
    let of_loss = study("validation_cross_entropy", 0.20);
    assert_eq!(remark(&of_loss, 50), too_small);
    assert_eq!(remark(&of_loss, 2000), None);
    // √(0.95·0.05/n): 0.031 at 50, 0.0049 at 2000.
    let of_accuracy = study("validation_accuracy", 0.92);
    assert_eq!(remark(&of_accuracy, 50), too_small);
    assert_eq!(remark(&of_accuracy, 2000), None);
    let of_errors = study("validation_error_rate", 0.08);
    assert_eq!(remark(&of_errors, 50), too_small);
    assert_eq!(remark(&of_errors, 2000), None);
    // Without a target: the one that a pilot would set, 0.1 × (2.3 − 0.15) from the best.
    let open = definition(json!({"workload": {"dataset": {"builtin": "synthetic"}}}));
    assert_eq!(remark(&open, 20), too_small);
    assert_eq!(remark(&open, 2000), None);
}

#[test]
fn row_5_the_ladder_is_one_of_typed_sizes_and_none_is_larger_than_what_was_asked_for() {
    let of = |workload: serde_json::Value| ladder(&definition(json!({ "workload": workload })));
    let digits = json!({"builtin": "digits"});
    assert_eq!(
        of(json!({"dataset": digits})),
        [vec![64], vec![512, 512], vec![2048, 2048, 2048]].map(Model::mlp)
    );
    assert_eq!(
        of(json!({"dataset": digits, "model": {"family": "mlp", "hidden": [40]}})),
        [vec![10], vec![20], vec![40]].map(Model::mlp)
    );
    // One unit cannot be halved.
    assert_eq!(
        of(json!({"dataset": digits, "model": {"family": "mlp", "hidden": [1]}})),
        [Model::mlp(vec![1])]
    );
    let settled = definition(json!({"workload": {
        "dataset": digits, "model": {"family": "mlp", "hidden": [40]},
        "target": {"metric": "validation_cross_entropy", "value": 0.2}
    }}));
    assert_eq!(ladder(&settled), [Model::mlp(vec![40])]);
    // A width is part of what a measurement depends on.
    let identity = |width: u64| {
        let mut spec =
            crate::analysis::fixtures::succeeded(Task::Smoke { steps: 1 }, 64, 0, &[]).spec;
        spec.workload.model = Model::mlp(vec![width]);
        crate::probe::fingerprint::identity("default", None, &spec).expect("hashes")
    };
    assert_ne!(identity(10), identity(20));
    let own =
        json!({"family": "sequential", "layers": [{"layer": "flatten"}, {"layer": "output"}]});
    assert_eq!(of(json!({"dataset": digits, "model": own})).len(), 1);
    let text = of(json!({"dataset": {"builtin": "markov_text"}}));
    assert_eq!(text.len(), 3);
    assert!(text.iter().all(|model| model.family() == "transformer_lm"));
}

#[test]
fn row_6_the_digits_have_a_reference_and_other_models_have_none() {
    let of = |workload: serde_json::Value| reference(&definition(json!({ "workload": workload })));
    let digits = json!({"builtin": "digits"});
    let found = of(json!({"dataset": digits})).expect("the catalog has one");
    assert_eq!((found.target, found.batch_size), (0.20, 64));
    assert_eq!(
        of(json!({"dataset": digits, "model": {"family": "mlp", "hidden": [65]}})),
        None
    );
    assert_eq!(of(json!({"dataset": {"builtin": "synthetic"}})), None);
}

#[test]
fn the_reference_is_reproduced_within_its_factor_only() {
    let reference = reference(&definition(
        json!({"workload": {"dataset": {"builtin": "digits"}}}),
    ))
    .expect("there is one");
    let of = |steps: [Option<f64>; 3]| {
        let runs: Vec<ProbeRecord> = steps
            .iter()
            .map(|steps| {
                let mut figures = vec![(Metric::BestEvaluation, 0.25)];
                figures.extend(steps.map(|steps| (Metric::StepsToTarget, steps)));
                crate::analysis::fixtures::succeeded(Task::Smoke { steps: 1 }, 64, 0, &figures)
            })
            .collect();
        let runs: Vec<&ProbeRecord> = runs.iter().collect();
        reproduction(reference, EvaluationMetric::ValidationCrossEntropy, &runs)
    };
    assert!(of([Some(25.0), Some(30.0), None]).reproduced);
    let slow = of([Some(60.0), Some(55.0), Some(30.0)]);
    assert!(!slow.reproduced);
    assert_eq!(slow.steps, Some(55.0));
    let missed = of([None, None, Some(30.0)]);
    assert_eq!(
        (missed.reproduced, missed.steps, missed.best),
        (false, None, Some(0.25))
    );
}
