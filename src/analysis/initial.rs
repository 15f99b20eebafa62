//! Where to start: the simplest model of a family that learns something worth the name, with a learning rate and a
//! number of steps (the playbook's *Choosing the initial configuration*).
//!
//! The sizes of a family are a ladder. On each rung, the smallest first, a range test says which learning rates can
//! be trained with, eight constant ones of them are tried, the best is trained for as long as it takes, and three
//! fresh seeds say what it is worth. The first rung that is *reasonable* is enough: larger ones are not trained.
//! What a model is worth is its *skill*: how much of what lies between chance and the least loss possible it has
//! gone, with a standard error from the paired losses of single examples. Training on shuffled targets is the
//! control: what is learned from them must be nothing.
//!
//! What comes next is found by going through these rules from the start and looking up every run they ask for, so it
//! depends on what the runs said and not on when they said it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::steps::setup;
use super::{Caveat, Evidence, Feasibility, ProbeRecord, ThroughputAnalysis};
use crate::catalog::{self, ModelFamily, ReferenceResult};
use crate::probe::{InfeasibleReason, Metric, ProbeKind, ProbeState, Task, TrainingRun};
use crate::statistics::intervals::{mean, median, standard_deviation, student_t_quantile};
use crate::study::{
    BatchSize, Dataset, EvaluationMetric, EvaluationTarget, Hyperparameter, Loss, Model, ModelFrom,
    Network, Optimizer, ProbeId, Question, StudyDefinition, Target, first_batch_size,
};

/// Constant learning rates that are tried on a rung: a factor of two apart, about.
const SWEEP: usize = 8;
/// More of them where the best lies at an end, and how often.
const EXTENSION: usize = 4;
const EXTENSIONS: usize = 2;
/// Fresh seeds of the best.
const SEEDS: u32 = 3;
/// A trial trains for so many epochs, and so many steps at least: what a small model needs to fit a small data set.
const EPOCHS: u64 = 20;
const STEPS: u64 = 500;
/// But a trial takes no more than this share of the study's budget, so that a ladder of three rungs is paid for.
const TRIAL_SHARE: f64 = 0.01;
/// And no run, however often its steps were doubled, more than this.
const RUN_SHARE: f64 = 0.04;
/// Fewer steps than this say nothing.
const LEAST_STEPS: u64 = 20;
/// After an evaluation at step t the next is at ⌈ratio·t⌉: that is close enough to know the best step by.
const EVALUATION_RATIO: f64 = 1.05;
/// A best step before this part of the run: half the steps are enough.
pub const EARLY: f64 = 0.10;
/// And after this: twice as many are worth a try.
pub const LATE: f64 = 0.75;
/// Unless the last quarter brought less than this share of the whole gain: a plateau. Trials whose losses differ by
/// less than this share of what was gained over chance are equally good, and the fastest of them is taken.
const PLATEAU: f64 = 0.01;
/// Times that the number of steps is changed.
const CHANGES: usize = 4;
/// Standard errors by which a model is better than chance beyond doubt.
const SURE: f64 = 5.0;
/// And the skill from which that matters.
const LEARNING: f64 = 0.05;
/// The skill of a model worth starting from.
const REASONABLE: f64 = 0.5;
/// Of a language model, whose chance already knows the frequencies of tokens.
const REASONABLE_TEXT: f64 = 0.15;
/// Standard errors above chance that a control may show, of a normal distribution; of few shuffles the quantile of
/// Student's t with as much probability beyond. And where the skill stays below what matters, any: shuffled targets
/// agree a little with the true ones by chance, which no standard error of examples knows.
const CONTROL: f64 = 3.0;
const CONTROL_PROBABILITY: f64 = 0.998_65;
/// Fewer validation examples than this tell neither a loss nor its standard error.
const LEAST_EXAMPLES: u64 = 30;
/// Shuffles of a control.
const SHUFFLES: u32 = 3;
/// Widths of the smaller rungs below a model that the study named.
const WIDTHS: [f64; 2] = [0.25, 0.5];
/// The target that a study without one would get: the best loss, relaxed by this share of what was gained over
/// chance.
const RELAXED: f64 = 0.1;
/// Standard errors within which a metric is known.
const KNOWN_WITHIN: f64 = 2.0;
/// Seeds of a reproduction, and its steps at most over those of the reference.
const REPRODUCTION_SEEDS: u32 = 3;
const REPRODUCTION_CAP: f64 = 3.0;

/// What a model is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing that could not be chance.
    Chance,
    /// Better than chance beyond doubt.
    Learning,
    /// Good enough to start from.
    Reasonable,
}

impl Level {
    /// The level of a skill with its standard error.
    pub fn of(skill: &Skill, target: &Target) -> Self {
        let enough = match target {
            Target::NextToken { .. } => REASONABLE_TEXT,
            Target::Classes { .. } | Target::Values { .. } => REASONABLE,
        };
        if skill.z < SURE || skill.value < LEARNING {
            Self::Chance
        } else if skill.value >= enough {
            Self::Reasonable
        } else {
            Self::Learning
        }
    }
}

/// How far a model has gone from chance to the least loss possible: 0 at chance, 1 at the least.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Skill {
    /// (chance − loss)/(chance − ideal), mean over the seeds.
    pub value: f64,
    /// Its standard error: of the validation examples and of the seeds.
    pub standard_error: f64,
    /// The one over the other.
    pub z: f64,
    /// The least validation loss of a run, mean over the seeds.
    pub loss: f64,
    /// Standard error of a run's loss, from the losses of single examples.
    pub loss_error: Option<f64>,
    /// Loss of the best predictor that does not look at its input.
    pub chance: f64,
    /// The least loss that any model can have, 0 where it is not known.
    pub ideal: f64,
    /// Share of predictions that are right, mean over the seeds; null where there are no labels.
    pub accuracy: Option<f64>,
}

/// Where a rung stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RungState {
    /// Runs are still to come.
    Searching,
    /// It is known what it is worth.
    Measured,
    /// Every learning rate diverged, or the fresh seeds did.
    Diverged,
    /// It does not fit, is too slow, or its probes failed.
    NotTrained,
}

/// One size of the family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Rung {
    /// The model.
    pub model: Model,
    /// Its trainable parameters.
    pub parameters: Option<u64>,
    /// Where it stands.
    pub state: RungState,
    /// The learning rates that were tried, lowest and highest, as η/(1 − γ) for the SGD family; null before its range test.
    #[schema(value_type = Option<Vec<f64>>, min_items = 2, max_items = 2)]
    pub learning_rates: Option<(f64, f64)>,
    /// The learning rate at which the range test diverged; null where it never did, or there was none.
    pub divergent_learning_rate: Option<f64>,
    /// Constant learning rates tried.
    pub trials: u64,
    /// Those that diverged.
    pub diverged: u64,
    /// The optimizer with the best of them.
    pub optimizer: Optimizer,
    /// Whether the best is the lowest or the highest that was tried.
    pub is_at_boundary: bool,
    /// The number of steps that training takes; null before it is known.
    pub steps: Option<u64>,
    /// The step of the least validation loss.
    pub best_step: Option<f64>,
    /// Whether it was still getting better at the end of the longest run.
    pub is_still_falling: bool,
    /// What it is worth; of the run that it was chosen by while there are no fresh seeds.
    pub skill: Option<Skill>,
    /// Fresh seeds behind it.
    pub seeds: u64,
    /// Fresh seeds that diverged.
    pub diverged_seeds: u64,
    /// Its level; null before the fresh seeds.
    pub level: Option<Level>,
    /// What kept it from being trained, if anything did.
    pub detail: Option<String>,
    /// The probes of the fresh seeds; of the best trial before.
    pub probe_ids: Vec<ProbeId>,
}

/// Training on shuffled targets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Control {
    /// What was learned where there was nothing to learn.
    pub skill: Skill,
    /// Its level.
    pub level: Level,
    /// Whether it is above chance beyond what chance allows: a leak, or a broken split.
    pub is_leak: bool,
    /// Shuffles behind it.
    pub seeds: u64,
    /// Their probes.
    pub probe_ids: Vec<ProbeId>,
}

impl Control {
    /// Whether a skill without anything to learn is more than chance allows. `by_seeds` is the part of its standard
    /// error that comes from how the shuffles differ, and `seeds` how many there are: what three of them say of their
    /// own scatter is uncertain, so the degrees of freedom are Satterthwaite's.
    pub fn is_leak(skill: &Skill, by_seeds: f64, seeds: usize) -> bool {
        let share = (by_seeds / skill.standard_error).powi(4);
        let limit = if seeds > 1 && share > 0.0 {
            let degrees = (seeds - 1) as f64 / share;
            student_t_quantile(CONTROL_PROBABILITY, degrees).unwrap_or(CONTROL)
        } else {
            CONTROL
        };
        skill.z > limit && skill.value >= LEARNING
    }
}

/// A published result, tried again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Reproduction {
    /// Which result.
    pub what: String,
    /// Whether it was reproduced.
    pub reproduced: bool,
    /// Its steps to the target.
    pub reference_steps: f64,
    /// The median of the runs; null where most did not reach the target.
    pub steps: Option<f64>,
    /// The one over the other.
    pub ratio: Option<f64>,
    /// By which factor the two may differ.
    pub within_factor: f64,
    /// The best values of the target's metric that the runs reached, median.
    pub best: Option<f64>,
    /// Runs.
    pub seeds: u64,
    /// Their probes.
    pub probe_ids: Vec<ProbeId>,
}

/// Where to start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InitialAnalysis {
    /// The batch size of every run.
    pub batch_size: BatchSize,
    /// The sizes of the family that were begun, smallest first.
    pub rungs: Vec<Rung>,
    /// Which of them to start from, counted from 0: the first reasonable one, else the best so far; null before any
    /// was measured.
    pub chosen: Option<usize>,
    /// Training on shuffled targets; null before it was done.
    pub control: Option<Control>,
    /// A published result tried again; null where the catalog has none for this model and data set.
    pub reproduction: Option<Reproduction>,
    /// Whether nothing is left to be done.
    pub is_complete: bool,
    /// Remarks: `W_NOT_REASONABLE`, `W_LEAK`, `W_EVAL_TOO_SMALL`, `W_BOUNDARY`, `W_STILL_FALLING`, `W_UNSTABLE`,
    /// `W_INCOMPLETE`.
    pub caveats: Vec<Caveat>,
    /// The runs that come next.
    #[serde(skip)]
    pub wanted: Vec<Wanted>,
}

impl InitialAnalysis {
    /// The rung to start from.
    pub fn chosen_rung(&self) -> Option<&Rung> {
        self.rungs.get(self.chosen?)
    }

    /// Whether it is good enough to start from.
    pub fn is_reasonable(&self) -> bool {
        self.chosen_rung()
            .is_some_and(|rung| rung.level == Some(Level::Reasonable))
    }
}

/// A run to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The model.
    pub model: Model,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Examples per step.
    pub batch_size: BatchSize,
    /// Which seed.
    pub replicate: u32,
    /// The run; none for a range test.
    pub run: Option<TrainingRun>,
    /// What it is for, for people.
    pub why: String,
}

/// Whether it is asked for.
pub fn is_asked(definition: &StudyDefinition) -> bool {
    definition
        .questions
        .contains(&Question::InitialConfiguration)
}

/// Whether a probe is one of those that seek an initial configuration.
pub fn is_of_initial(probe: &ProbeRecord) -> bool {
    matches!(&probe.spec.task, Task::Training(run) if run.compares_with_chance)
}

/// Whether a study's own model is tuned to a target for its batch size, so that a smaller one would answer nothing.
fn is_settled(definition: &StudyDefinition) -> bool {
    let is_about_batch_sizes = definition
        .questions
        .iter()
        .any(|question| matches!(question, Question::BatchSize | Question::CriticalBatchSize));
    definition.workload.target.is_some() && is_about_batch_sizes
}

/// The sizes to try, smallest first: those of the catalog where the study leaves the model open, else the study's
/// model after a quarter and a half of its widths; that alone where its batch size is tuned to a target.
pub fn ladder(definition: &StudyDefinition) -> Vec<Model> {
    let asked = &definition.workload.model;
    let facts = definition.workload.dataset.facts();
    let parameters = |model: &Model| {
        let network = Network::new(model, &facts).ok()?;
        Some(network.parameters())
    };
    let mut models: Vec<Model> = match definition.model_from {
        // Another program's has no sizes that the service could try.
        _ if asked.is_external() => return vec![asked.clone()],
        ModelFrom::Default => sizes(asked.family()).to_vec(),
        // All else that the study asks is about this very model: it is settled.
        ModelFrom::Study if is_settled(definition) => vec![asked.clone()],
        ModelFrom::Study => WIDTHS
            .into_iter()
            .filter_map(|share| asked.scaled(share))
            .filter(|smaller| parameters(smaller) < parameters(asked))
            .chain([asked.clone()])
            .collect(),
    };
    models.retain(|model| parameters(model).is_some());
    models.dedup();
    models
}

/// The catalog's sizes of a family, small to large.
pub fn sizes(family: &str) -> &'static [Model] {
    static SIZES: LazyLock<BTreeMap<&str, Vec<Model>>> = LazyLock::new(|| {
        let models = |family: &ModelFamily| {
            let sizes = family.sizes.iter();
            let models = sizes.filter_map(|size| {
                let mut posted = size.parameters.clone();
                posted["family"] = family.name.into();
                serde_json::from_value(posted).ok()
            });
            models.collect()
        };
        let families = catalog::model_families().iter();
        families.map(|it| (it.name, models(it))).collect()
    });
    SIZES.get(family).map_or(&[], Vec::as_slice)
}

/// A published result that the study's model and data set can reproduce.
pub fn reference(definition: &StudyDefinition) -> Option<&'static ReferenceResult> {
    static REFERENCES: LazyLock<Vec<(Dataset, Model, &ReferenceResult)>> = LazyLock::new(|| {
        let families = catalog::model_families().iter();
        let references = families.flat_map(|family| &family.references);
        let read = |reference: &'static ReferenceResult| {
            let dataset = serde_json::from_value(reference.dataset.clone()).ok()?;
            let model = serde_json::from_value(reference.model.clone()).ok()?;
            Some((dataset, model, reference))
        };
        references.filter_map(read).collect()
    });
    let workload = &definition.workload;
    let mut references = REFERENCES.iter();
    let is_of = |(dataset, model, _): &&(Dataset, Model, _)| {
        *dataset == workload.dataset && *model == workload.model
    };
    references.find(is_of).map(|(_, _, reference)| *reference)
}

/// Works out where to start; `None` where it is not asked for, or no batch size can be trained.
pub fn analyze(
    definition: &StudyDefinition,
    evidence: &Evidence,
    feasibility: Option<&Feasibility>,
    throughput: Option<&ThroughputAnalysis>,
) -> Option<InitialAnalysis> {
    if !is_asked(definition) {
        return None;
    }
    let largest = feasibility.and_then(|feasibility| feasibility.largest_feasible);
    let begun = evidence.of_kind(ProbeKind::Training).find(|probe| {
        is_of_initial(probe)
            && matches!(&probe.spec.task, Task::Training(run) if run.target.is_none())
    });
    let batch_size = match begun {
        Some(probe) => probe.batch_size(),
        None => first_batch_size(&setup::candidates(definition, largest))?,
    };
    let seconds = throughput.and_then(|throughput| {
        let mut points = throughput.points.iter();
        let point = points.find(|point| point.batch_size == batch_size)?;
        Some(point.time_per_step_secs.value)
    });
    let search = Ladder {
        definition,
        evidence,
        batch_size,
        seconds,
    };
    Some(search.climb(largest))
}

struct Ladder<'a> {
    definition: &'a StudyDefinition,
    evidence: &'a Evidence,
    batch_size: BatchSize,
    /// Time of a step of the study's model.
    seconds: Option<f64>,
}

/// What is missing before one can go on.
type Missing = Vec<Wanted>;

impl<'a> Ladder<'a> {
    fn climb(&self, largest: Option<BatchSize>) -> InitialAnalysis {
        let mut rungs = Vec::new();
        let mut wanted = Vec::new();
        let (reproduction, runs) = self.reproduce(largest);
        for model in ladder(self.definition) {
            let mut rung = self.untried(model);
            let step = self.try_rung(&mut rung);
            let (is_enough, is_hopeless) = (
                rung.level == Some(Level::Reasonable),
                // What is larger fits no better.
                rung.state == RungState::NotTrained,
            );
            rungs.push(rung);
            if let Err(missing) = step {
                wanted = missing;
                break;
            }
            if is_enough || is_hopeless {
                break;
            }
        }
        let chosen = chosen(&rungs);
        let mut control = None;
        if wanted.is_empty()
            && let Some(rung) = chosen.and_then(|index| rungs.get(index))
        {
            match self.control(rung) {
                Ok(found) => control = found,
                Err(missing) => wanted = missing,
            }
        }
        wanted.extend(runs);
        let mut analysis = InitialAnalysis {
            batch_size: self.batch_size,
            rungs,
            chosen,
            control,
            reproduction,
            is_complete: wanted.is_empty(),
            caveats: Vec::new(),
            wanted,
        };
        analysis.caveats = remarks(self.definition, &analysis);
        analysis
    }

    fn untried(&self, model: Model) -> Rung {
        let network = Network::new(&model, &self.definition.workload.dataset.facts());
        Rung {
            parameters: network.ok().map(|network| network.parameters()),
            model,
            state: RungState::Searching,
            learning_rates: None,
            divergent_learning_rate: None,
            trials: 0,
            diverged: 0,
            optimizer: self.definition.optimizer.clone(),
            is_at_boundary: false,
            steps: None,
            best_step: None,
            is_still_falling: false,
            skill: None,
            seeds: 0,
            diverged_seeds: 0,
            level: None,
            detail: None,
            probe_ids: Vec::new(),
        }
    }

    /// The ended probe of a run, or the run as missing.
    fn find(&self, wanted: Wanted) -> Result<&'a ProbeRecord, Wanted> {
        let is_it = |probe: &&ProbeRecord| {
            let spec = &probe.spec;
            let is_same_task = match (&spec.task, &wanted.run) {
                (Task::Training(run), Some(wanted)) => run == wanted,
                (Task::LearningRateRange(_), None) => true,
                _ => false,
            };
            is_same_task
                && spec.batch_size == wanted.batch_size
                && spec.replicate == wanted.replicate
                && spec.workload.model == wanted.model
                && spec.optimizer == wanted.optimizer
                && probe.state.has_ended()
        };
        let mut probes = self.evidence.probes.iter();
        probes.find(is_it).ok_or(wanted)
    }

    /// All of them, or those that are missing.
    fn find_all(&self, wanted: Vec<Wanted>) -> Result<Vec<&'a ProbeRecord>, Missing> {
        let mut found = Vec::with_capacity(wanted.len());
        let mut missing = Vec::new();
        for it in wanted {
            match self.find(it) {
                Ok(probe) => found.push(probe),
                Err(wanted) => missing.push(wanted),
            }
        }
        if missing.is_empty() {
            Ok(found)
        } else {
            Err(missing)
        }
    }

    fn run(
        &self,
        rung: &Rung,
        optimizer: &Optimizer,
        steps: u64,
        replicate: u32,
        why: String,
    ) -> Wanted {
        let run = TrainingRun {
            compares_with_chance: true,
            ..TrainingRun::new(steps, None, EVALUATION_RATIO)
        };
        Wanted {
            model: rung.model.clone(),
            optimizer: optimizer.clone(),
            batch_size: self.batch_size,
            replicate,
            run: Some(run),
            why: format!(
                "where to start, {} {}: {why}",
                rung.model.family(),
                rung.model.size()
            ),
        }
    }

    fn try_rung(&self, rung: &mut Rung) -> Result<(), Missing> {
        let Some((lower, upper)) = self.range(rung)? else {
            return Ok(());
        };
        let steps = self.first_steps(rung);
        let Some(best) = self.sweep(rung, lower, upper, steps)? else {
            return Ok(());
        };
        rung.optimizer = best.spec.optimizer.clone();
        rung.steps = Some(steps);
        self.note(rung, &[best]);
        let best = self.number_of_steps(rung, best, steps)?;
        self.note(rung, &[best]);
        self.seeds(rung)
    }

    /// ln of the effective learning rates to try; none where the range test could not be made.
    fn range(&self, rung: &mut Rung) -> Result<Option<(f64, f64)>, Missing> {
        let named = self
            .definition
            .search
            .ranges
            .get(&Hyperparameter::LearningRate);
        if let Some(named) = named {
            return Ok(Some((named.lower.ln(), named.upper.ln())));
        }
        let wanted = Wanted {
            model: rung.model.clone(),
            optimizer: self.definition.optimizer.clone(),
            batch_size: self.batch_size,
            replicate: 0,
            run: None,
            why: format!(
                "where to start, {} {}: which learning rates can be trained with at all",
                rung.model.family(),
                rung.model.size()
            ),
        };
        let test = self.find(wanted).map_err(|wanted| vec![wanted])?;
        if !test.succeeded() {
            fail(rung, test);
            return Ok(None);
        }
        rung.divergent_learning_rate = test.figure(Metric::DivergentLearningRate);
        Ok(Some(setup::tested_range(self.definition, test)))
    }

    /// Steps of a trial: those of the rung's first one if there is one, so that nothing moves while it goes on.
    fn first_steps(&self, rung: &Rung) -> u64 {
        let begun = self
            .evidence
            .of_kind(ProbeKind::Training)
            .find_map(|probe| {
                let Task::Training(run) = &probe.spec.task else {
                    return None;
                };
                let is_first = run.compares_with_chance
                    && run.target.is_none()
                    && probe.spec.workload.model == rung.model;
                is_first.then_some(run.max_steps)
            });
        begun.unwrap_or_else(|| {
            let examples = self.definition.workload.dataset.facts().training_examples;
            let epoch = examples / self.batch_size.0.max(1);
            let usual = epoch.saturating_mul(EPOCHS).max(STEPS);
            usual.min(self.paid_for(rung, TRIAL_SHARE))
        })
    }

    /// Steps that a share of the budget pays for.
    fn paid_for(&self, rung: &Rung, share: f64) -> u64 {
        // A model with more parameters takes longer, about in proportion.
        let times = match (rung.parameters, self.definition.workload.parameters()) {
            (Some(its), Some(measured)) if its > measured => its as f64 / measured.max(1) as f64,
            _ => 1.0,
        };
        let scaled = self.seconds.map(|seconds| seconds * times);
        // The range test was of this very model, but starting its process counts too.
        let tested = self
            .evidence
            .of_kind(ProbeKind::LearningRateRange)
            .filter(|probe| probe.batch_size() == self.batch_size)
            .find(|probe| probe.spec.workload.model == rung.model)
            .and_then(|probe| Some(probe.device_secs / probe.figure(Metric::Steps)?));
        let seconds = [scaled, tested].into_iter().flatten();
        let Some(seconds) = seconds.filter(|it| *it > 0.0).reduce(f64::min) else {
            return u64::MAX;
        };
        let steps = self.definition.budget.device_secs * share / seconds;
        (steps as u64).max(LEAST_STEPS)
    }

    /// Constant learning rates, evenly spaced in their logarithm; more of them beyond an end at which the best
    /// lies. Gives the fastest of the best.
    fn sweep(
        &self,
        rung: &mut Rung,
        lower: f64,
        upper: f64,
        steps: u64,
    ) -> Result<Option<&'a ProbeRecord>, Missing> {
        let spacing = (upper - lower) / SWEEP as f64;
        let momentum = self.definition.optimizer.effective_momentum();
        let at = |ln: f64| {
            let mut optimizer = self.definition.optimizer.clone();
            optimizer.set(Hyperparameter::LearningRate, ln.exp() * (1.0 - momentum));
            optimizer
        };
        let is_named = self
            .definition
            .search
            .ranges
            .contains_key(&Hyperparameter::LearningRate);
        // Counted from the first point, in spacings.
        let (mut first, mut last) = (0_i64, SWEEP as i64 - 1);
        for extension in 0..=EXTENSIONS {
            let wanted = (first..=last)
                .map(|index| {
                    let ln = lower + (index as f64 + 0.5) * spacing;
                    let why = "a constant learning rate of the range that can be trained with";
                    self.run(rung, &at(ln), steps, 0, why.to_owned())
                })
                .collect();
            let trials = self.find_all(wanted)?;
            let diverged = |probe: &ProbeRecord| {
                probe.state == ProbeState::Infeasible
                    && probe.infeasible == Some(InfeasibleReason::Diverged)
            };
            rung.trials = trials.len() as u64;
            rung.diverged = trials.iter().filter(|probe| diverged(probe)).count() as u64;
            let end = |index: i64| (lower + (index as f64 + 0.5) * spacing).exp();
            rung.learning_rates = Some((end(first), end(last)));
            let Some((best, at_lower, at_upper)) = best_of(&trials, diverged) else {
                if rung.diverged > 0 && rung.diverged == rung.trials {
                    if extension < EXTENSIONS && !is_named {
                        first -= EXTENSION as i64;
                        continue;
                    }
                    rung.state = RungState::Diverged;
                } else if let Some(failed) = trials.iter().find(|probe| !probe.succeeded()) {
                    fail(rung, failed);
                } else {
                    rung.state = RungState::NotTrained;
                    rung.detail = Some("its runs reported no evaluation".into());
                }
                return Ok(None);
            };
            rung.is_at_boundary = at_lower || at_upper;
            if !rung.is_at_boundary || extension == EXTENSIONS || is_named {
                return Ok(Some(best));
            }
            if at_lower {
                first -= EXTENSION as i64;
            } else {
                last += EXTENSION as i64;
            }
        }
        Ok(None)
    }

    /// Half the steps where the best comes early, twice as many where it comes late.
    fn number_of_steps(
        &self,
        rung: &mut Rung,
        mut best: &'a ProbeRecord,
        mut steps: u64,
    ) -> Result<&'a ProbeRecord, Missing> {
        let mut tried = vec![steps];
        for change in 0..=CHANGES {
            let Some(next) = changed_steps(best, steps) else {
                break;
            };
            if next > steps && next > self.paid_for(rung, RUN_SHARE) || change == CHANGES {
                rung.is_still_falling = next > steps;
                break;
            }
            if next < LEAST_STEPS || tried.contains(&next) {
                break;
            }
            let why = if next > steps {
                format!(
                    "the best step lies in the last quarter of {steps}, so twice as many are tried"
                )
            } else {
                format!(
                    "the best step lies in the first tenth of {steps}, so half as many are tried"
                )
            };
            let optimizer = rung.optimizer.clone();
            let wanted = self.run(rung, &optimizer, next, 0, why);
            let found = self.find(wanted).map_err(|wanted| vec![wanted])?;
            if found.figure(Metric::BestEvaluation).is_none() {
                // It diverged later on: then the shorter run is what can be had.
                break;
            }
            (best, steps) = (found, next);
            tried.push(steps);
            rung.steps = Some(steps);
            self.note(rung, &[best]);
        }
        rung.steps = Some(steps);
        Ok(best)
    }

    fn seeds(&self, rung: &mut Rung) -> Result<(), Missing> {
        let Some(steps) = rung.steps else {
            return Ok(());
        };
        let optimizer = rung.optimizer.clone();
        let wanted = (1..=SEEDS)
            .map(|replicate| {
                let why = "the best once more, with a seed that it was not chosen by";
                self.run(rung, &optimizer, steps, replicate, why.to_owned())
            })
            .collect();
        let runs = self.find_all(wanted)?;
        let counted: Vec<&ProbeRecord> = runs
            .iter()
            .copied()
            .filter(|probe| probe.figure(Metric::BestEvaluation).is_some())
            .collect();
        rung.diverged_seeds = runs
            .iter()
            .filter(|probe| probe.infeasible == Some(InfeasibleReason::Diverged))
            .count() as u64;
        if 2 * rung.diverged_seeds > u64::from(SEEDS) {
            rung.state = RungState::Diverged;
            return Ok(());
        }
        let target = &self.definition.workload.dataset.facts().target;
        if counted.is_empty() || skill_of(&counted).is_none() {
            rung.state = RungState::NotTrained;
            rung.detail = Some(
                "its runs could not be compared with chance: a class of the validation examples has no training example, chance is as good as anything can be, or the probes failed".into(),
            );
            return Ok(());
        }
        self.note(rung, &counted);
        rung.state = RungState::Measured;
        rung.seeds = counted.len() as u64;
        rung.level = rung.skill.as_ref().map(|skill| Level::of(skill, target));
        Ok(())
    }

    /// Writes down what runs of the chosen hyperparameters came to.
    fn note(&self, rung: &mut Rung, runs: &[&ProbeRecord]) {
        let best_steps: Vec<f64> = runs
            .iter()
            .filter_map(|probe| probe.figure(Metric::BestStep))
            .collect();
        rung.best_step = median(&best_steps);
        rung.skill = skill_of(runs);
        rung.probe_ids = runs.iter().map(|probe| probe.id).collect();
    }

    /// Training on shuffled targets for as long as training on the true ones took to be at its best: a step that no
    /// control has chosen.
    fn control(&self, rung: &Rung) -> Result<Option<Control>, Missing> {
        let (Some(steps), Some(best)) = (rung.steps, rung.best_step) else {
            return Ok(None);
        };
        let steps = (best.round() as u64).clamp(LEAST_STEPS.min(steps), steps);
        let wanted = (0..SHUFFLES)
            .map(|replicate| {
                let why = "the control: from shuffled targets nothing may be learned".to_owned();
                let mut wanted = self.run(rung, &rung.optimizer, steps, replicate, why);
                if let Some(run) = &mut wanted.run {
                    run.shuffles_targets = true;
                }
                wanted
            })
            .collect();
        let runs = self.find_all(wanted)?;
        let target = &self.definition.workload.dataset.facts().target;
        let skills = runs.iter().filter_map(|probe| skill_of(&[probe]));
        let skills: Vec<f64> = skills.map(|skill| skill.value).collect();
        let by_seeds = standard_error_of_mean(&skills);
        Ok(skill_of(&runs).map(|skill| Control {
            level: Level::of(&skill, target),
            is_leak: Control::is_leak(&skill, by_seeds, skills.len()),
            skill,
            seeds: skills.len() as u64,
            probe_ids: runs.iter().map(|probe| probe.id).collect(),
        }))
    }

    /// The published result, and the runs that are missing.
    fn reproduce(&self, largest: Option<BatchSize>) -> (Option<Reproduction>, Missing) {
        let nothing = (None, Vec::new());
        let Some(reference) = reference(self.definition) else {
            return nothing;
        };
        let metric = serde_json::from_value::<EvaluationMetric>(reference.metric.into());
        let optimizer = serde_json::from_value::<Optimizer>(reference.optimizer.clone());
        let (Ok(metric), Ok(optimizer)) = (metric, optimizer) else {
            return nothing;
        };
        let batch_size = BatchSize(reference.batch_size);
        if largest.is_some_and(|largest| batch_size > largest) {
            return nothing;
        }
        let target = EvaluationTarget {
            metric,
            value: reference.target,
        };
        let run = TrainingRun {
            compares_with_chance: true,
            ..TrainingRun::new(
                (reference.steps * REPRODUCTION_CAP).ceil() as u64,
                Some(target),
                crate::probe::EVALUATION_RATIO,
            )
        };
        let wanted = (0..REPRODUCTION_SEEDS)
            .map(|replicate| Wanted {
                model: self.definition.workload.model.clone(),
                optimizer: optimizer.clone(),
                batch_size,
                replicate,
                run: Some(run.clone()),
                why: format!("a known result once more: {}", reference.what),
            })
            .collect();
        match self.find_all(wanted) {
            Ok(runs) => (Some(reproduction(reference, metric, &runs)), Vec::new()),
            Err(missing) => (None, missing),
        }
    }
}

/// Notes why a rung could not be trained.
fn fail(rung: &mut Rung, probe: &ProbeRecord) {
    let reason = match (probe.infeasible, probe.state) {
        (Some(reason), _) => reason.as_str().to_owned(),
        (None, state) => format!("its probe has {}", state.as_str()),
    };
    let detail = probe.detail.as_deref().unwrap_or_default();
    rung.state = match probe.infeasible {
        Some(InfeasibleReason::Diverged) => RungState::Diverged,
        _ => RungState::NotTrained,
    };
    rung.detail = Some(if detail.is_empty() {
        reason
    } else {
        format!("{reason}: {detail}")
    });
}

/// The fastest of the best trials, and whether the very best is the lowest or the highest learning rate that was
/// tried. Beside a higher one that diverged it is not the highest: there is nothing beyond.
fn best_of<'a>(
    trials: &[&'a ProbeRecord],
    diverged: impl Fn(&ProbeRecord) -> bool,
) -> Option<(&'a ProbeRecord, bool, bool)> {
    let loss = |probe: &ProbeRecord| probe.figure(Metric::BestEvaluation);
    let survived: Vec<(usize, &ProbeRecord, f64)> = trials
        .iter()
        .enumerate()
        .filter_map(|(index, probe)| Some((index, *probe, loss(probe)?)))
        .collect();
    let (index, best, least) = *survived.iter().min_by(|a, b| a.2.total_cmp(&b.2))?;
    let is_at_an_end = |index: usize| {
        index == 0 || index + 1 == trials.len() && !trials.iter().any(|probe| diverged(probe))
    };
    if is_at_an_end(index) {
        return Some((best, index == 0, index > 0));
    }
    let tolerance = best
        .figure(Metric::ChanceLoss)
        .map_or(0.0, |chance| PLATEAU * (chance - least).max(0.0));
    let step = |probe: &ProbeRecord| probe.figure(Metric::BestStep).unwrap_or(f64::INFINITY);
    let fastest = survived
        .iter()
        .filter(|(index, _, loss)| !is_at_an_end(*index) && *loss <= least + tolerance)
        .min_by(|a, b| step(a.1).total_cmp(&step(b.1)))
        .map_or(best, |it| it.1);
    Some((fastest, false, false))
}

/// The number of steps to try next, if the best step says so.
fn changed_steps(best: &ProbeRecord, steps: u64) -> Option<u64> {
    let share = best.figure(Metric::BestStep)? / steps as f64;
    let is_plateau = best
        .figure(Metric::LateGain)
        .is_some_and(|gain| gain < PLATEAU);
    if share < EARLY {
        Some(steps / 2)
    } else if share > LATE && !is_plateau {
        Some(steps.saturating_mul(2))
    } else {
        None
    }
}

/// The skill of a few runs of the same hyperparameters.
fn skill_of(runs: &[&ProbeRecord]) -> Option<Skill> {
    let all = |metric: Metric| -> Vec<f64> {
        runs.iter()
            .filter_map(|probe| probe.figure(metric))
            .collect()
    };
    let chance = mean(&all(Metric::ChanceLoss))?;
    let ideal = mean(&all(Metric::IrreducibleLoss)).unwrap_or(0.0);
    let whole = chance - ideal;
    let gains = all(Metric::GainOverChance);
    if gains.is_empty() || whole.is_nan() || whole <= 0.0 {
        return None;
    }
    let value = mean(&gains)? / whole;
    // The same examples are behind every seed, so more seeds make their error no smaller.
    let of_examples = mean(&all(Metric::GainOverChanceError))?;
    let of_seeds = standard_error_of_mean(&gains);
    let standard_error = of_examples.hypot(of_seeds) / whole;
    let z = if standard_error > 0.0 {
        value / standard_error
    } else if value > 0.0 {
        f64::MAX
    } else {
        0.0
    };
    Some(Skill {
        value,
        standard_error,
        z,
        loss: mean(&all(Metric::BestEvaluation))?,
        loss_error: mean(&all(Metric::BestEvaluationError)),
        chance,
        ideal,
        accuracy: mean(&all(Metric::BestAccuracy)),
    })
}

/// 0 of fewer than two.
fn standard_error_of_mean(values: &[f64]) -> f64 {
    standard_deviation(values).unwrap_or(0.0) / (values.len() as f64).sqrt()
}

/// The first reasonable rung, else the best so far: of equals the smaller.
fn chosen(rungs: &[Rung]) -> Option<usize> {
    let reasonable = rungs
        .iter()
        .position(|rung| rung.level == Some(Level::Reasonable));
    reasonable.or_else(|| {
        let skill = |rung: &Rung| {
            let is_usable = !matches!(rung.state, RungState::Diverged | RungState::NotTrained);
            rung.skill.filter(|_| is_usable).map(|skill| skill.value)
        };
        let known = rungs.iter().enumerate().rev();
        known
            .filter_map(|(index, rung)| Some((index, skill(rung)?)))
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(index, _)| index)
    })
}

fn reproduction(
    reference: &ReferenceResult,
    metric: EvaluationMetric,
    runs: &[&ProbeRecord],
) -> Reproduction {
    let reached: Vec<f64> = runs
        .iter()
        .map(|probe| {
            let steps = probe.figure(Metric::StepsToTarget);
            steps.map_or(f64::INFINITY, |steps| steps.max(1.0))
        })
        .collect();
    let steps = median(&reached).filter(|steps| steps.is_finite());
    let ratio = steps.map(|steps| steps / reference.steps);
    let best: Vec<f64> = runs
        .iter()
        .filter_map(|probe| probe.figure(Metric::BestEvaluation))
        .map(|value| metric.score(value))
        .collect();
    Reproduction {
        what: reference.what.into(),
        reproduced: ratio.is_some_and(|ratio| {
            (1.0 / reference.within_factor..=reference.within_factor).contains(&ratio)
        }),
        reference_steps: reference.steps,
        steps,
        ratio,
        within_factor: reference.within_factor,
        best: median(&best).map(|score| metric.score(score)),
        seeds: runs.len() as u64,
        probe_ids: runs.iter().map(|probe| probe.id).collect(),
    }
}

fn remarks(definition: &StudyDefinition, analysis: &InitialAnalysis) -> Vec<Caveat> {
    let mut caveats = Vec::new();
    let Some(rung) = analysis.chosen_rung() else {
        return caveats;
    };
    let mut say = |code: &str, detail: String| {
        caveats.push(Caveat {
            code: code.into(),
            detail,
        });
    };
    if !analysis.is_complete {
        say(
            "W_INCOMPLETE",
            "runs are still to come, or the budget did not pay for them: this is what is known so far".into(),
        );
    } else if !analysis.is_reasonable() {
        say(
            "W_NOT_REASONABLE",
            format!(
                "no size that was tried is reasonable: the best reaches a skill of {:.2} ({}); try another model family, more steps, or look at the data",
                rung.skill.map_or(0.0, |skill| skill.value),
                match rung.level {
                    Some(Level::Learning) => "better than chance",
                    _ => "no better than chance",
                }
            ),
        );
    }
    if let Some(control) = analysis.control.as_ref().filter(|control| control.is_leak) {
        say(
            "W_LEAK",
            format!(
                "training on shuffled targets is better than chance by {:.1} standard errors: the validation examples can be predicted without having learned anything, so look for a leak or a broken split before anything else",
                control.skill.z
            ),
        );
    }
    if rung.is_at_boundary {
        say(
            "W_BOUNDARY",
            "the best learning rate is at an end of those that were tried: a better one may lie beyond".into(),
        );
    }
    if rung.is_still_falling {
        say(
            "W_STILL_FALLING",
            format!(
                "the validation loss was still falling after {} steps, and more were not tried",
                rung.steps.unwrap_or_default()
            ),
        );
    }
    if rung.diverged_seeds > 0 {
        say(
            "W_UNSTABLE",
            format!(
                "{} of {SEEDS} fresh seeds diverged: take a lower learning rate, warm it up, or clip the gradients",
                rung.diverged_seeds
            ),
        );
    }
    let size = evaluation_examples(definition);
    if let Some(skill) = &rung.skill {
        caveats.extend(evaluation_remark(definition, skill, size));
    }
    caveats
}

/// Examples that are validated on.
fn evaluation_examples(definition: &StudyDefinition) -> u64 {
    let all = definition.workload.dataset.facts().validation_examples;
    definition
        .workload
        .validation_examples
        .unwrap_or(all)
        .min(all)
}

/// `W_EVAL_TOO_SMALL`: where the validation examples do not tell the target from the best that was reached.
fn evaluation_remark(definition: &StudyDefinition, skill: &Skill, examples: u64) -> Option<Caveat> {
    if examples < LEAST_EXAMPLES {
        return Some(Caveat {
            code: "W_EVAL_TOO_SMALL".into(),
            detail: format!(
                "{examples} validation examples tell neither a loss nor how certain it is: validate on {LEAST_EXAMPLES} at the very least"
            ),
        });
    }
    let of_loss = EvaluationMetric::of_loss(definition.workload.loss);
    let given = definition.workload.target.as_ref();
    let target = given.cloned().unwrap_or(EvaluationTarget {
        metric: of_loss,
        value: skill.loss + RELAXED * (skill.chance - skill.loss),
    });
    let of_a_share = |share: f64| (share * (1.0 - share) / examples as f64).sqrt();
    let (best, error) = match target.metric {
        metric if metric == of_loss => (skill.loss, skill.loss_error?),
        EvaluationMetric::ValidationAccuracy => (skill.accuracy?, of_a_share(skill.accuracy?)),
        EvaluationMetric::ValidationErrorRate => {
            (1.0 - skill.accuracy?, of_a_share(skill.accuracy?))
        }
        EvaluationMetric::ValidationPerplexity
            if definition.workload.loss == Loss::CrossEntropy =>
        {
            let perplexity = skill.loss.exp();
            (perplexity, perplexity * skill.loss_error?)
        }
        _ => return None,
    };
    let apart = (target.value - best).abs();
    (KNOWN_WITHIN * error > apart).then(|| Caveat {
        code: "W_EVAL_TOO_SMALL".into(),
        detail: format!(
            "{examples} validation examples give {} to within {:.2e}, and the {} of {:.4} lies only {apart:.2e} from the best that was reached: validate on more examples, or differences will be chance",
            target.metric.as_str(),
            KNOWN_WITHIN * error,
            if given.is_some() { "target" } else { "target that a pilot would set" },
            target.value,
        ),
    })
}

#[cfg(test)]
mod tests;
