//! The configuration to start with, as one thing that can be pasted, and its two numbers that are asked for most: the
//! learning rate and the number of steps.

use serde_json::{Value, json};

use super::{
    Advice, Basis, Confidence, EvidenceRef, Grade, Topic, bells, optimizer_text, references,
    three_figures,
};
use crate::analysis::initial::{self, InitialAnalysis, Level, Rung};
use crate::analysis::{Analysis, Caveat, Evidence};
use crate::probe::{ProbeKind, Task};
use crate::study::{
    BatchSize, Hyperparameter, Optimizer, Regularisation, Schedule, StudyDefinition,
};

const PLAYBOOK: &str = "choosing-the-initial-configuration";
const STEPS: &str = "determining-the-number-of-steps-for-each-training-run";

/// What is recommended.
struct Chosen<'a> {
    initial: &'a InitialAnalysis,
    rung: &'a Rung,
    batch_size: BatchSize,
    optimizer: Optimizer,
    regularisation: Regularisation,
    steps: u64,
    /// Whether batch size and optimizer are those that training to the target was tuned with.
    is_tuned_to_target: bool,
}

impl Chosen<'_> {
    /// Whether optimizer or batch size are others than those that say what the model is worth.
    fn differs_from_what_was_tried(&self) -> bool {
        self.batch_size != self.initial.batch_size || self.optimizer != self.rung.optimizer
    }
}

fn chosen<'a>(definition: &StudyDefinition, analysis: &'a Analysis) -> Option<Chosen<'a>> {
    let initial = analysis.initial.as_ref()?;
    let rung = initial.chosen_rung()?;
    let steps = rung.steps?;
    let mut chosen = Chosen {
        initial,
        rung,
        batch_size: initial.batch_size,
        optimizer: rung.optimizer.clone(),
        regularisation: Regularisation::of(&definition.workload),
        steps,
        is_tuned_to_target: false,
    };
    let decided = || {
        let size = analysis.training_time.as_ref()?.measured_batch_size?;
        let points = &analysis.steps.as_ref()?.points;
        let at = |size: BatchSize| points.iter().find(|point| point.batch_size == size);
        let fitted = |size: BatchSize| Some(at(size)?.fitted_steps?.value);
        let ratio = fitted(size).zip(fitted(initial.batch_size));
        Some((at(size)?, ratio.map_or(1.0, |(there, here)| there / here)))
    };
    if rung.model == definition.workload.model
        && let Some((point, ratio)) = decided()
    {
        chosen.batch_size = point.batch_size;
        chosen.optimizer = point.optimizer.clone();
        chosen.regularisation = point.regularisation;
        chosen.steps = ((steps as f64 * ratio).ceil() as u64).max(1);
        chosen.is_tuned_to_target = true;
    }
    Some(chosen)
}

/// Everything that a training script needs, in the words of a study.
fn configuration(definition: &StudyDefinition, chosen: &Chosen<'_>) -> Value {
    let mut workload = definition.workload.clone();
    workload.model = chosen.rung.model.clone();
    chosen.regularisation.apply(&mut workload);
    json!({
        "dataset": workload.dataset.name(),
        "model": workload.model,
        "loss": workload.loss,
        "label_smoothing": workload.label_smoothing,
        "dtype": workload.dtype,
        "optimizer": chosen.optimizer,
        "schedule": Schedule::default(),
        "gradient_clipping": definition.gradient_clipping,
        "batch_size": chosen.batch_size,
        "steps": chosen.steps,
    })
}

pub fn advise(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    let Some(chosen) = chosen(definition, analysis) else {
        return nothing(evidence, analysis.initial.as_ref()?);
    };
    let initial = chosen.initial;
    let rung = chosen.rung;
    let mut caveats = initial.caveats.clone();
    caveats.extend(bells::remark(definition));
    if rung.model != definition.workload.model {
        caveats.push(Caveat {
            code: "W_OTHER_MODEL".into(),
            detail: format!(
                "what this study says of memory, times and batch sizes is about {} {}; for {} {} post a study with it",
                definition.workload.model.family(),
                definition.workload.model.size(),
                rung.model.family(),
                rung.model.size()
            ),
        });
    }
    Some(Advice {
        topic: Topic::InitialConfiguration,
        value: json!({
            "initial_configuration": rung.level,
            "configuration": configuration(definition, &chosen),
            "tuned": tuned(definition, &chosen),
            "fixed": fixed(definition, &chosen),
            "skill": rung.skill,
            "control": initial.control,
            "tuned_to_target": chosen.is_tuned_to_target,
            "ladder": initial.rungs.iter().map(|rung| json!({
                "model": rung.model,
                "parameters": rung.parameters,
                "state": rung.state,
                "level": rung.level,
                "skill": rung.skill,
                "steps": rung.steps,
                "detail": rung.detail,
            })).collect::<Vec<_>>(),
        }),
        summary: summary(&chosen),
        basis: Basis::Measured,
        confidence: confidence(&chosen),
        evidence: behind(evidence),
        caveats,
        playbook: PLAYBOOK.into(),
    })
}

/// That nothing could be measured, once nothing more comes.
fn nothing(evidence: &Evidence, initial: &InitialAnalysis) -> Option<Advice> {
    if !initial.is_complete {
        return None;
    }
    let why: Vec<String> = initial
        .rungs
        .iter()
        .map(|rung| {
            let what = match (&rung.detail, rung.trials) {
                (Some(detail), _) => detail.clone(),
                (None, trials) => format!("every one of {trials} learning rates diverged"),
            };
            format!("{} {}: {what}", rung.model.family(), rung.model.size())
        })
        .collect();
    let detail = why.join("; ");
    Some(Advice {
        topic: Topic::InitialConfiguration,
        value: json!({ "initial_configuration": null, "configuration": null }),
        summary: format!("No configuration to start with was found ({detail})."),
        basis: Basis::Measured,
        confidence: Confidence {
            grade: Grade::Low,
            because: "no run could be judged".into(),
            p_best: None,
            p_within_5pct: None,
            near_ties: Vec::new(),
        },
        evidence: behind(evidence),
        caveats: vec![Caveat {
            code: "W_NOT_REASONABLE".into(),
            detail: format!(
                "no model that was tried could be trained ({detail}); try another family, or look at the data"
            ),
        }],
        playbook: PLAYBOOK.into(),
    })
}

pub fn learning_rate(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    let chosen = chosen(definition, analysis)?;
    let rung = chosen.rung;
    let rate = chosen.optimizer.learning_rate();
    let caveats = only(
        chosen.initial,
        &[
            "W_BOUNDARY",
            "W_UNSTABLE",
            "W_INCOMPLETE",
            "W_LEAK",
            "W_NOT_REASONABLE",
        ],
    );
    let mut summary = format!(
        "Begin with a constant learning rate of {} at batch size {}: the fastest of the best among {} that were tried",
        three_figures(rate),
        chosen.batch_size,
        rung.trials
    );
    if let Some((lower, upper)) = rung.learning_rates {
        let factor = 1.0 - definition.optimizer.effective_momentum();
        summary.push_str(&format!(
            " from {} to {}",
            three_figures(lower * factor),
            three_figures(upper * factor)
        ));
    }
    if chosen.is_tuned_to_target {
        summary = format!(
            "Begin with a learning rate of {} at batch size {}, where it was tuned to the target",
            three_figures(rate),
            chosen.batch_size
        );
    }
    summary.push_str(&match rung.divergent_learning_rate {
        Some(diverges) => format!(
            "; training diverges from about {}.",
            three_figures(diverges)
        ),
        None => "; none that was looked at diverged.".into(),
    });
    summary.push_str(" With another batch size, optimizer or model it has to be tuned anew.");
    Some(Advice {
        topic: Topic::LearningRate,
        value: json!({
            "learning_rate": rate,
            "batch_size": chosen.batch_size,
            "divergent_learning_rate": rung.divergent_learning_rate,
            "tried": rung.learning_rates,
            "interior": !rung.is_at_boundary,
            "trials": rung.trials,
            "diverged": rung.diverged,
            "schedule": Schedule::default(),
            "tuned_to_target": chosen.is_tuned_to_target,
        }),
        summary,
        basis: Basis::Measured,
        confidence: confidence(&chosen),
        evidence: behind(evidence),
        caveats,
        playbook: PLAYBOOK.into(),
    })
}

pub fn number_of_steps(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    let chosen = chosen(definition, analysis)?;
    let rung = chosen.rung;
    let examples = definition.workload.dataset.facts().training_examples as f64;
    let epochs = chosen.steps as f64 * chosen.batch_size.as_f64() / examples;
    let caveats = only(
        chosen.initial,
        &[
            "W_STILL_FALLING",
            "W_INCOMPLETE",
            "W_LEAK",
            "W_NOT_REASONABLE",
        ],
    );
    let measured = rung.steps.unwrap_or(chosen.steps);
    let share = rung.best_step.map(|step| step / measured as f64);
    let mut summary = format!(
        "Train for {} steps of batch size {} ({} epochs).",
        chosen.steps,
        chosen.batch_size,
        three_figures(epochs)
    );
    if let Some(share) = share {
        summary.push_str(&format!(
            " The least validation loss came after {:.0}% of {measured} steps at batch size {}: {}.",
            share * 100.0,
            chosen.initial.batch_size,
            if rung.is_still_falling {
                "it was still falling, and more steps were not tried"
            } else if share > initial::LATE {
                "late, but what the last quarter of them brought is next to nothing"
            } else if share < initial::EARLY {
                "early, and fewer would do"
            } else {
                "neither so early that half would do nor so late that more would help much"
            }
        ));
    }
    if chosen.is_tuned_to_target && chosen.batch_size != chosen.initial.batch_size {
        summary.push_str(" From there to this batch size they follow the steps to the target.");
    }
    Some(Advice {
        topic: Topic::NumberOfSteps,
        value: json!({
            "number_of_steps": chosen.steps,
            "epochs": epochs,
            "batch_size": chosen.batch_size,
            "best_step": rung.best_step,
            "best_step_share": share,
            "measured_steps": measured,
            "measured_batch_size": chosen.initial.batch_size,
        }),
        summary,
        basis: Basis::Measured,
        confidence: confidence(&chosen),
        evidence: behind(evidence),
        caveats,
        playbook: STEPS.into(),
    })
}

/// The remarks with one of these codes.
fn only(initial: &InitialAnalysis, codes: &[&str]) -> Vec<Caveat> {
    let caveats = initial.caveats.iter();
    caveats
        .filter(|caveat| codes.contains(&caveat.code.as_str()))
        .cloned()
        .collect()
}

/// The hyperparameters that were tuned for the configuration.
fn tuned(definition: &StudyDefinition, chosen: &Chosen<'_>) -> Vec<Hyperparameter> {
    if chosen.is_tuned_to_target {
        definition.search.hyperparameters.clone()
    } else {
        vec![Hyperparameter::LearningRate]
    }
}

/// Every other that the optimizer has, with its value.
fn fixed(definition: &StudyDefinition, chosen: &Chosen<'_>) -> Value {
    let tuned = tuned(definition, chosen);
    Hyperparameter::ALL
        .into_iter()
        .filter(|it| !tuned.contains(it))
        .filter_map(|it| {
            let value = chosen.optimizer.get(it)?;
            Some((it.as_str().to_owned(), json!(value)))
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn behind(evidence: &Evidence) -> Vec<EvidenceRef> {
    references(evidence, |probe| {
        let is_run = initial::is_of_initial(probe)
            && matches!(&probe.spec.task, Task::Training(run) if run.target.is_none());
        is_run || probe.kind() == ProbeKind::LearningRateRange
    })
}

/// How sure all of it is: learning rate and number of steps are of the same runs as the configuration.
fn confidence(chosen: &Chosen<'_>) -> Confidence {
    let initial = chosen.initial;
    let has = |code: &str| initial.caveats.iter().find(|caveat| caveat.code == code);
    let doubt = ["W_LEAK", "W_INCOMPLETE", "W_NOT_REASONABLE", "W_UNSTABLE"]
        .into_iter()
        .find_map(has);
    let limit = ["W_BOUNDARY", "W_STILL_FALLING", "W_EVAL_TOO_SMALL"]
        .into_iter()
        .find_map(has);
    let seeds = initial.chosen_rung().map_or(0, |rung| rung.seeds);
    let (grade, because) = match (doubt, limit) {
        (Some(caveat), _) => (Grade::Low, caveat.detail.clone()),
        _ if !initial.is_reasonable() => (Grade::Low, "the model is not reasonable yet".into()),
        (None, Some(caveat)) => (Grade::Moderate, caveat.detail.clone()),
        (None, None) if chosen.differs_from_what_was_tried() => (
            Grade::Moderate,
            format!(
                "what it is worth was measured with {} at batch size {}; it was tuned to the target since, by steps and not by what it comes to in the end",
                optimizer_text(&chosen.rung.optimizer),
                initial.batch_size
            ),
        ),
        (None, None) => match &initial.control {
            Some(_) => (
                Grade::High,
                format!(
                    "{seeds} seeds that had no part in choosing it agree, and the control learned nothing that could not be chance"
                ),
            ),
            None => (
                Grade::Moderate,
                format!(
                    "{seeds} seeds that had no part in choosing it agree; training on shuffled targets could not be judged"
                ),
            ),
        },
    };
    Confidence {
        grade,
        because,
        p_best: None,
        p_within_5pct: None,
        near_ties: Vec::new(),
    }
}

fn summary(chosen: &Chosen<'_>) -> String {
    let rung = chosen.rung;
    let mut text = format!(
        "Start with {} {}, {}, kept constant, batch size {}, {} steps.",
        rung.model.family(),
        rung.model.size(),
        optimizer_text(&chosen.optimizer),
        chosen.batch_size,
        chosen.steps
    );
    if let Some(skill) = &rung.skill {
        let said = match rung.level {
            Some(Level::Reasonable) => "is reasonable",
            Some(Level::Learning) => "is better than chance, but not reasonable yet",
            Some(Level::Chance) => "is no better than chance",
            None => "has not been tried with fresh seeds yet",
        };
        text.push_str(&format!(
            " {} {said}: at its best a validation loss of {}{}, {:.0}% (standard error {:.0}%) of the way from chance ({}) to {}.",
            if chosen.differs_from_what_was_tried() {
                format!(
                    "With {} at batch size {} it",
                    optimizer_text(&rung.optimizer),
                    chosen.initial.batch_size
                )
            } else {
                "It".into()
            },
            three_figures(skill.loss),
            match rung.best_step {
                Some(step) if Some(step.round() as u64) < rung.steps => format!(
                    " after {step:.0} of {} steps (keep the parameters of the best evaluation)",
                    rung.steps.unwrap_or_default()
                ),
                _ => String::new(),
            },
            skill.value * 100.0,
            skill.standard_error * 100.0,
            three_figures(skill.chance),
            if skill.ideal > 0.0 {
                format!("the least possible, {}", three_figures(skill.ideal))
            } else {
                "0".into()
            }
        ));
    }
    let smaller = chosen.initial.rungs.len().saturating_sub(1);
    if rung.level == Some(Level::Reasonable) {
        text.push_str(&match smaller {
            0 => {
                " It is the smallest size that was considered; larger ones were not needed.".into()
            }
            1 => " A smaller size was not.".to_owned(),
            several => format!(" {several} smaller sizes were not."),
        });
    }
    if let Some(control) = &chosen.initial.control {
        text.push_str(&format!(
            " On shuffled targets it learned {} (skill {:.3} ± {:.3}).",
            if control.is_leak {
                "something, which must not be"
            } else {
                "nothing that could not be chance, as it must"
            },
            control.skill.value,
            control.skill.standard_error
        ));
    }
    if chosen.is_tuned_to_target {
        text.push_str(" Batch size and optimizer are those that were tuned to the target.");
    }
    text
}
