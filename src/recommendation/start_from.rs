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
    let is_custom = matches!(asked, Model::Sequential { .. });
    let entry = entry(asked, &facts)?;
    let sizes = initial::sizes(entry.name);
    let smallest = sizes.first()?.clone();
    let optimizer = Optimizer::first_for(&smallest);
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
            "sizes": ladder(&entry, &sizes, &facts),
            "optimizer": optimizer,
            "gradient_clipping": GradientClipping::first_for(&smallest),
            "provenance": entry.provenance,
            "known_result": entry.known_result,
            "reference": initial::reference(definition),
            "reproduced": reproduction.map(|it| it.reproduced),
            "reproduction": reproduction,
            "alternatives": alternatives(&entry, &facts),
        }),
        summary: summary(&entry, &smallest, &optimizer, &facts, reproduction),
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
fn entry(asked: &Model, facts: &Facts) -> Option<ModelFamily> {
    let families = catalog::model_families();
    let name = match asked {
        Model::Sequential { .. } => crate::study::defaults::default_model(facts).family(),
        family => family.family(),
    };
    families.into_iter().find(|family| family.name == name)
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
        .into_iter()
        .filter(|family| family.name != entry.name)
        .filter_map(|family| {
            let smallest = initial::sizes(family.name).into_iter().next()?;
            Network::new(&smallest, facts).ok()?;
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
