//! Which optimizer to start with: the rule of thumb for the family of the model, or what a comparison of candidates
//! that were tuned alike shows. Every hyperparameter is listed, with what it is to the study and what the study does
//! about it.

use serde_json::json;

use super::throughput::time;
use super::training_time::count;
use super::{
    Advice, Basis, Confidence, Grade, Topic, bells, optimizer_text, probability, references,
    three_figures,
};
use crate::analysis::initial::RungState;
use crate::analysis::optimizers::{
    ComparedBy, ComparisonVerdict, OptimizerCandidate, OptimizerPair, series, trials_for,
};
use crate::analysis::steps::SearchState;
use crate::analysis::{Analysis, Caveat, Evidence, OptimizerAnalysis};
use crate::probe::ProbeKind;
use crate::study::{
    Hyperparameter, Optimizer, Role, StudyDefinition, TreatedHyperparameter, Tuning,
};

const PLAYBOOK: &str = "choosing-the-optimizer";
/// Hyperparameters for which the number of trials is named before the run.
const MOST_TUNED: usize = 4;

/// The advice.
pub fn advise(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    match &analysis.optimizers {
        Some(comparison) if definition.compares_optimizers() => {
            Some(compared(definition, evidence, comparison))
        }
        _ => Some(rule_of_thumb(definition, analysis)),
    }
}

/// What tuning takes, by the number of hyperparameters: known before the run.
fn trial_budget() -> serde_json::Value {
    (1..=MOST_TUNED)
        .map(|dimensions| json!({"hyperparameters": dimensions, "trials": trials_for(dimensions)}))
        .collect()
}

/// What the study has tuned of its own optimizer: which hyperparameters, and the best point. The search of steps to
/// target at its first batch size goes before the learning rates of the initial configuration.
fn found<'a>(
    definition: &'a StudyDefinition,
    analysis: &'a Analysis,
) -> (&'a [Hyperparameter], Option<&'a Optimizer>) {
    if definition.tunes() {
        let steps = analysis.steps.as_ref();
        let point = steps.and_then(|steps| {
            let mut points = steps.points.iter();
            points.find(|point| {
                point.batch_size == steps.base && point.state == SearchState::Measured
            })
        });
        let tuned = definition.search.hyperparameters.as_slice();
        return (tuned, point.map(|point| &point.optimizer));
    }
    let rung = analysis.initial.as_ref().and_then(|initial| {
        let rung = initial.rungs.get(initial.chosen?)?;
        (rung.state == RungState::Measured).then_some(rung)
    });
    match rung {
        Some(rung) => (&[Hyperparameter::LearningRate], Some(&rung.optimizer)),
        None => (&[], None),
    }
}

fn rule_of_thumb(definition: &StudyDefinition, analysis: &Analysis) -> Advice {
    let own = &definition.optimizer;
    let first = Optimizer::first_for(&definition.workload.model);
    let is_own = own.family() == first.family();
    let (tuned, found) = found(definition, analysis);
    let treated = own.treated(tuned, found);
    let optimizer = if is_own { found.unwrap_or(own) } else { &first };
    let mut caveats = of_hyperparameters(own.family(), &treated);
    caveats.extend(bells::remark(definition));
    let mut summary = format!(
        "Start with {}: {} is what is usually taken first for models of the family {}, and no optimizer is the best for all.",
        optimizer_text(optimizer),
        first.family(),
        definition.workload.model.family()
    );
    if !is_own {
        summary.push_str(&format!(
            " The study names {}; to see whether it is better here, name both as optimizers.candidates.",
            own.family()
        ));
    }
    let axes = definition.search.hyperparameters.len().clamp(1, MOST_TUNED);
    summary.push_str(&format!(
        " Tuning {} well takes about {} trials; 16, 32, 64 and 128 for one to four hyperparameters.",
        names(&definition.search.hyperparameters),
        trials_for(axes)
    ));
    let mut value = json!({
        "optimizer": optimizer,
        "gradient_clipping": definition.gradient_clipping,
        "roles": {"optimizer.family": Role::Fixed, "batch_size": Role::Fixed},
        "hyperparameters": if is_own { treated.clone() } else { first.treated(&[], None) },
        "trial_budget": trial_budget(),
    });
    if !is_own {
        value["study_optimizer"] =
            json!({"optimizer": found.unwrap_or(own), "hyperparameters": treated});
    }
    Advice {
        topic: Topic::Optimizer,
        value,
        summary,
        basis: Basis::RuleOfThumb,
        confidence: Confidence {
            grade: Grade::Moderate,
            because: "what others start with for this family of models; nothing was compared here"
                .into(),
            p_best: None,
            p_within_5pct: None,
            near_ties: Vec::new(),
        },
        evidence: Vec::new(),
        caveats,
        playbook: PLAYBOOK.into(),
    }
}

/// Hyperparameters in a sentence.
fn names(hyperparameters: &[Hyperparameter]) -> String {
    let names: Vec<String> = hyperparameters
        .iter()
        .map(|it| it.as_str().replace('_', " "))
        .collect();
    match names.as_slice() {
        [] => "the learning rate".into(),
        [one] => format!("the {one}"),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// What hyperparameters that are not tuned leave open: `W_FIXED_NUISANCE` of those with a value of their own,
/// `W_UNTUNED` of those at their default.
fn of_hyperparameters(family: &str, treated: &[TreatedHyperparameter]) -> Vec<Caveat> {
    let mut caveats = Vec::new();
    let fixed: Vec<String> = treated
        .iter()
        .filter(|it| it.role == Role::Nuisance && it.status == Tuning::Fixed)
        .map(|it| format!("{} at {}", it.name, three_figures(it.value)))
        .collect();
    if !fixed.is_empty() {
        caveats.push(Caveat {
            code: "W_FIXED_NUISANCE".into(),
            detail: format!(
                "{family} was given {}: what is concluded holds for these values, and would have to be tuned again for others; leave them to the search (search.hyperparameters) unless there is a reason",
                fixed.join(", ")
            ),
        });
    }
    for it in treated.iter().filter(|it| it.status == Tuning::Untuned) {
        caveats.push(Caveat {
            code: format!("W_UNTUNED:{}", it.name),
            detail: format!(
                "{} of {family} was kept at its default, {}",
                it.name,
                three_figures(it.value)
            ),
        });
    }
    caveats
}

fn compared(
    definition: &StudyDefinition,
    evidence: &Evidence,
    comparison: &OptimizerAnalysis,
) -> Advice {
    let recommended = comparison
        .recommended
        .and_then(|index| comparison.candidates.get(index));
    let mut caveats = comparison.caveats.clone();
    let treated = recommended.map(|it| it.named.treated(&it.tuned, Some(&it.optimizer)));
    if let (Some(it), Some(treated)) = (recommended, &treated) {
        caveats.extend(of_hyperparameters(it.named.family(), treated));
    }
    let (grade, because) = grade(comparison);
    let count = comparison.candidates.len();
    Advice {
        topic: Topic::Optimizer,
        value: json!({
            "optimizer": recommended.map(|it| &it.optimizer),
            "verdict": comparison.verdict,
            "batch_size": comparison.batch_size,
            "target": comparison.target,
            "target_source": comparison.target_source,
            "compared_by": comparison.compared_by,
            "roles": {"optimizer.family": Role::Scientific, "batch_size": Role::Fixed},
            "hyperparameters": treated,
            "candidates": comparison.candidates,
            "pairs": comparison.pairs,
            "trial_budget": trial_budget(),
        }),
        summary: summary(comparison, recommended),
        basis: match comparison.verdict {
            Some(ComparisonVerdict::Identical) | None => Basis::RuleOfThumb,
            _ => Basis::Measured,
        },
        confidence: Confidence {
            grade,
            because,
            p_best: None,
            p_within_5pct: None,
            near_ties: Vec::new(),
        },
        evidence: references(evidence, |probe| {
            let is_of_a_candidate = (0..count).any(|it| series(it) == probe.series());
            let is_of_the_target = definition.workload.target.is_none()
                && probe.series() == 0
                && matches!(
                    probe.kind(),
                    ProbeKind::Training | ProbeKind::LearningRateRange
                );
            is_of_a_candidate || is_of_the_target
        }),
        caveats,
        playbook: PLAYBOOK.into(),
    }
}

fn grade(comparison: &OptimizerAnalysis) -> (Grade, String) {
    let unfair = comparison
        .caveats
        .iter()
        .find(|caveat| caveat.code == "W_UNFAIR_COMPARISON");
    match (comparison.verdict, unfair) {
        (None, _) => (
            Grade::Low,
            "not every candidate has been tuned yet, or fewer than two reached the target".into(),
        ),
        (Some(ComparisonVerdict::Identical), _) => {
            (Grade::High, "they are the same update rule".into())
        }
        (Some(_), Some(caveat)) => (Grade::Low, caveat.detail.clone()),
        (Some(ComparisonVerdict::DifferenceDeclared), None) => (
            Grade::High,
            "a difference is declared at a probability of 0.975".into(),
        ),
        (Some(ComparisonVerdict::NoDifferenceDeclared), None) => (
            Grade::Moderate,
            "no difference reaches a probability of 0.975, which is no proof that there is none"
                .into(),
        ),
    }
}

fn summary(comparison: &OptimizerAnalysis, recommended: Option<&OptimizerCandidate>) -> String {
    let (what, needs) = match comparison.compared_by {
        ComparedBy::StepsToTarget => ("steps to the target", "fewer steps"),
        ComparedBy::TrainingTime => ("training time", "less training time"),
    };
    let name = |index: usize| name(&comparison.candidates, index);
    let mut text = match comparison.verdict {
        None => format!(
            "Which optimizer needs the least at batch size {} cannot be said.",
            comparison.batch_size
        ),
        Some(ComparisonVerdict::Identical) => {
            return format!(
                "The candidates are identical: every one of them is {} under the values given (learning rates are tuned in any case), so nothing was trained.",
                comparison
                    .candidates
                    .first()
                    .map_or("the same", |it| it.named.canonical(&[]).family())
            );
        }
        Some(_) => format!(
            "Each tuned with the same budget at batch size {}, compared by {what}:",
            comparison.batch_size
        ),
    };
    for candidate in comparison
        .candidates
        .iter()
        .filter(|it| it.identical_to.is_none())
    {
        if let Some(steps) = &candidate.steps {
            text.push_str(&format!(
                " {} takes {} steps{} (median of {} seeds).",
                optimizer_text(&candidate.optimizer),
                count(steps.value),
                candidate
                    .training_time_secs
                    .as_ref()
                    .map_or(String::new(), |it| format!(", {}", time(it.value))),
                candidate.seeds
            ));
        } else if let Some(cap) = candidate.more_than_steps {
            text.push_str(&format!(
                " {} did not reach the target in {cap} steps.",
                candidate.named.family()
            ));
        }
    }
    for pair in &comparison.pairs {
        text.push_str(&said(pair, name, needs));
    }
    if let (Some(it), Some(ComparisonVerdict::NoDifferenceDeclared)) =
        (recommended, comparison.verdict)
    {
        text.push_str(&format!(" Take {}.", it.named.family()));
    }
    text
}

/// A candidate's family, with its number where another has the same.
fn name(candidates: &[OptimizerCandidate], index: usize) -> String {
    let Some(candidate) = candidates.get(index) else {
        return String::new();
    };
    let family = candidate.named.family();
    let mut others = candidates
        .iter()
        .filter(|it| it.named.family() == family && it.identical_to.is_none());
    if others.nth(1).is_some() {
        format!("candidate {}, {family},", index + 1)
    } else {
        family.to_owned()
    }
}

fn said(pair: &OptimizerPair, name: impl Fn(usize) -> String, needs: &str) -> String {
    let (first, second) = (name(pair.first), name(pair.second));
    if pair.is_identical {
        return format!(
            " Candidates {} and {} are identical.",
            pair.first + 1,
            pair.second + 1
        );
    }
    let Some(p) = pair.p_first_better else {
        return String::new();
    };
    match pair.better {
        Some(better) => {
            let (better, other, p) = if better == pair.first {
                (first, second, p)
            } else {
                (second, first, 1.0 - p)
            };
            format!(
                " {better} needs {needs} than {other}, with a probability of {}.",
                probability(p)
            )
        }
        None => format!(
            " No difference between {first} and {second} is declared (probability {p:.2} that {first} needs {needs})."
        ),
    }
}
