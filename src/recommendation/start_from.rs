//! The model to start from: one that others have made work. A rule of the field, known at once; where the catalog
//! has a result on the study's own model and data set, whether it could be reproduced here.

use serde_json::{Value, json};

use super::{Advice, Basis, Confidence, Grade, Topic, optimizer_text, references, three_figures};
use crate::analysis::initial::{self, Reproduction};
use crate::analysis::{Analysis, Caveat, Evidence};
use crate::catalog::{self, ModelFamily};
use crate::probe::Task;
use crate::study::{Facts, GradientClipping, Model, Network, Optimizer, StudyDefinition};

pub fn advise(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    let facts = definition.workload.dataset.facts();
    let asked = &definition.workload.model;
    let is_custom = matches!(asked, Model::Sequential { .. } | Model::External { .. });
    let entry = entry(asked, &facts)?;
    let sizes = initial::sizes(entry.name);
    let smallest = sizes.first()?;
    let optimizer = Optimizer::first_for(smallest);
    let reproduction = analysis
        .initial
        .as_ref()
        .and_then(|initial| initial.reproduction.as_ref());
    let mut caveats = Vec::new();
    if is_custom {
        caveats.push(Caveat {
            code: "W_CUSTOM_MODEL".into(),
            detail: format!(
                "the study's model is one of its own ({}), so there is no published result to compare with: should it not work, nobody knows whether the model or the pipeline is at fault; start from {} and change it step by step",
                asked.size(),
                entry.name
            ),
        });
    }
    if let Some(failed) = reproduction.filter(|it| !it.reproduced) {
        caveats.push(Caveat {
            code: "W_NOT_REPRODUCED".into(),
            detail: not_reproduced(failed),
        });
    }
    let (grade, because) = grade(is_custom, reproduction);
    Some(Advice {
        topic: Topic::StartFrom,
        value: json!({
            "start_from": entry.name,
            "task": facts.target.task(),
            "model": smallest,
            "sizes": ladder(entry, sizes, &facts),
            "optimizer": optimizer,
            "gradient_clipping": GradientClipping::first_for(smallest),
            "provenance": entry.provenance,
            "known_result": entry.known_result,
            "reference": initial::reference(definition),
            "reproduced": reproduction.map(|it| it.reproduced),
            "reproduction": reproduction,
            "alternatives": alternatives(entry, &facts),
        }),
        summary: summary(entry, smallest, &optimizer, &facts, reproduction),
        basis: Basis::RuleOfThumb,
        confidence: Confidence {
            grade,
            because,
            p_best: None,
            p_within_5pct: None,
            near_ties: Vec::new(),
        },
        evidence: references(evidence, |probe| {
            initial::is_of_initial(probe)
                && matches!(&probe.spec.task, Task::Training(run) if run.target.is_some())
        }),
        caveats,
        playbook: "choosing-the-model-architecture".into(),
    })
}

/// The catalog's entry: that of the study's family, or the simplest that reads the data set where the model is one
/// of the study's own.
fn entry(asked: &Model, facts: &Facts) -> Option<&'static ModelFamily> {
    let name = match asked {
        Model::Sequential { .. } | Model::External { .. } => {
            crate::study::defaults::default_model(facts).family()
        }
        family => family.family(),
    };
    let mut families = catalog::model_families().iter();
    families.find(|family| family.name == name)
}

/// The sizes with what they take, those that fit the data set.
fn ladder(entry: &ModelFamily, sizes: &[Model], facts: &Facts) -> Vec<Value> {
    entry
        .sizes
        .iter()
        .zip(sizes)
        .filter_map(|(size, model)| {
            let network = Network::new(model, facts).ok()?;
            Some(json!({
                "name": size.name,
                "model": model,
                "parameters": network.parameters(),
            }))
        })
        .collect()
}

/// Other families that read the data set, with what they are known to reach.
fn alternatives(entry: &ModelFamily, facts: &Facts) -> Vec<Value> {
    catalog::model_families()
        .iter()
        .filter(|family| family.name != entry.name)
        .filter_map(|family| {
            let smallest = initial::sizes(family.name).first()?;
            Network::new(smallest, facts).ok()?;
            Some(json!({
                "family": family.name,
                "optimizer": family.first_optimizer,
                "known_result": family.known_result,
            }))
        })
        .collect()
}

fn not_reproduced(failed: &Reproduction) -> String {
    let found = match (failed.steps, failed.ratio) {
        (Some(steps), Some(ratio)) => format!(
            "it took {} steps instead of {}, {ratio:.2} times as many where a factor of {} is allowed",
            three_figures(steps),
            three_figures(failed.reference_steps),
            failed.within_factor
        ),
        _ => format!(
            "most of {} runs did not reach it; the best value was {}",
            failed.seeds,
            failed.best.map_or("none".into(), three_figures)
        ),
    };
    format!(
        "a known result was not reproduced ({}): {found}. Until it is, mistrust the pipeline first",
        failed.what
    )
}

fn grade(is_custom: bool, reproduction: Option<&Reproduction>) -> (Grade, String) {
    match reproduction {
        _ if is_custom => (
            Grade::Low,
            "nothing is published about a model of one's own".into(),
        ),
        Some(it) if it.reproduced => (
            Grade::High,
            format!(
                "a known result was reproduced here, by the median of {} runs",
                it.seeds
            ),
        ),
        Some(_) => (Grade::Low, "a known result was not reproduced here".into()),
        None => (
            Grade::Moderate,
            "others have made it work; nothing of that was measured here".into(),
        ),
    }
}

fn summary(
    entry: &ModelFamily,
    smallest: &Model,
    optimizer: &Optimizer,
    facts: &Facts,
    reproduction: Option<&Reproduction>,
) -> String {
    let mut text = format!(
        "For {}, start from the catalog's {} ({}), at first as small as {}, with {}.",
        facts.target.task(),
        entry.name,
        entry
            .provenance
            .first()
            .map_or("no source", |provenance| provenance.source),
        smallest.size(),
        optimizer_text(optimizer)
    );
    if let Some(known) = &entry.known_result {
        text.push_str(&format!(" Known: {}.", known.what));
    }
    if let Some(it) = reproduction.filter(|it| it.reproduced) {
        text.push_str(&format!(
            " Reproduced here: {}; {} steps, the median of {} runs.",
            it.what,
            three_figures(it.steps.unwrap_or_default()),
            it.seeds
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::{StudyRequest, resolve};

    fn advised(workload: serde_json::Value) -> Advice {
        let request: StudyRequest =
            serde_json::from_value(json!({ "workload": workload })).expect("a request");
        let definition = resolve(request, None).expect("known");
        advise(&definition, &Evidence::default(), &Analysis::default()).expect("known at once")
    }

    fn codes(advice: &Advice) -> Vec<&str> {
        let caveats = advice.caveats.iter();
        caveats.map(|caveat| caveat.code.as_str()).collect()
    }

    #[test]
    fn row_4_every_kind_of_task_has_a_model_to_start_from_with_its_source() {
        for (dataset, task, family) in [
            ("digits", "classification", "mlp"),
            ("synthetic_images", "classification", "mlp"),
            ("linear_teacher", "regression", "mlp"),
            ("markov_text", "language modelling", "transformer_lm"),
        ] {
            let advice = advised(json!({"dataset": {"builtin": dataset}}));
            assert_eq!(advice.value["task"], task);
            assert_eq!(advice.value["start_from"], family);
            assert_eq!(advice.basis, Basis::RuleOfThumb);
            let sources = advice.value["provenance"].as_array().expect("a list");
            assert!(!sources.is_empty());
            let sizes = advice.value["sizes"].as_array().expect("a list");
            let names: Vec<&str> = sizes.iter().filter_map(|it| it["name"].as_str()).collect();
            assert_eq!(names, ["S", "M", "L"]);
            let parameters: Vec<u64> = sizes
                .iter()
                .filter_map(|it| it["parameters"].as_u64())
                .collect();
            assert!(parameters.is_sorted_by(|a, b| a < b), "{parameters:?}");
            assert_eq!(codes(&advice), [""; 0]);
        }
        // Images have more families than the simplest.
        let images = advised(json!({"dataset": {"builtin": "synthetic_images"}}));
        let others = images.value["alternatives"].as_array().expect("a list");
        let others: Vec<&str> = others
            .iter()
            .filter_map(|it| it["family"].as_str())
            .collect();
        assert!(
            others.contains(&"cnn") && others.contains(&"resnet"),
            "{others:?}"
        );
    }

    #[test]
    fn row_4_a_custom_model_is_flagged() {
        let advice = advised(json!({
            "dataset": {"builtin": "digits"},
            "model": {"family": "sequential", "layers": [
                {"layer": "linear", "units": 4}, {"layer": "output"}
            ]}
        }));
        assert_eq!(codes(&advice), ["W_CUSTOM_MODEL"]);
        assert_eq!(advice.confidence.grade, Grade::Low);
        assert_eq!(advice.value["start_from"], "mlp");
    }

    /// Table of the first optimizer of a family.
    #[test]
    fn row_8_the_most_popular_optimizer_of_the_family_comes_first() {
        for (dataset, model, optimizer, fields) in [
            (
                "synthetic_images",
                "cnn",
                "sgd_nesterov",
                json!({"momentum": 0.9}),
            ),
            (
                "synthetic_images",
                "resnet",
                "sgd_nesterov",
                json!({"momentum": 0.9}),
            ),
            (
                "synthetic_images",
                "transformer_encoder",
                "adamw",
                json!({"beta_1": 0.9, "epsilon": 1e-8}),
            ),
            (
                "markov_text",
                "transformer_lm",
                "adamw",
                json!({"beta_1": 0.9, "epsilon": 1e-8}),
            ),
            ("markov_text", "rnn", "adam", json!({})),
            (
                "digits",
                "mlp",
                "adam",
                json!({"beta_1": 0.9, "beta_2": 0.999}),
            ),
        ] {
            let advice = advised(json!({
                "dataset": {"builtin": dataset}, "model": {"family": model}
            }));
            let first = &advice.value["optimizer"];
            assert_eq!(first["family"], optimizer, "{model}");
            for (name, value) in fields.as_object().expect("fields") {
                assert_eq!(first[name], *value, "{model} {name}");
            }
            if optimizer == "adamw" {
                let beta_2 = first["beta_2"].as_f64().expect("a number");
                assert!((0.95..=0.999).contains(&beta_2));
            }
            let clips = advice.value["gradient_clipping"]["kind"] == "global_norm";
            assert_eq!(clips, model == "rnn", "{model}");
        }
    }

    #[test]
    fn row_6_the_digits_come_with_a_result_to_reproduce() {
        let advice = advised(json!({"dataset": {"builtin": "digits"}}));
        assert_eq!(advice.value["reference"]["target"], 0.20);
        assert_eq!(advice.value["reproduced"], Value::Null, "not tried yet");
    }
}
