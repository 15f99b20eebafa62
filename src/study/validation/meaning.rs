//! What a schema cannot say: how the fields of a definition fit together.

use super::json::{child, shortened};
use super::{DefinitionLimits, Violation};
use crate::study::defaults::{default_model, largest, smallest};
use crate::study::runner::option_faults;
use crate::study::{
    BURN, BatchSize, Bytes, Contents, DatasetRequest, EvaluationMetric, ExternalFacts, Facts, Goal,
    Grid, Hyperparameter, LEAST_GHOST_BATCH, Loss, Model, Network, Optimizer, Question,
    StudyRequest, Target, TaskKind, UploadedRequest, is_noisy_quadratic, is_runner_name,
};

/// Everything in a request that does not fit together. `cut` are the pointers of what is already
/// known to be wrong and was replaced: nothing is said that rests on one of them.
pub(super) fn violations(
    request: &StudyRequest,
    limits: &DefinitionLimits,
    cut: &[String],
) -> Vec<Violation> {
    let mut check = Check {
        cut,
        found: Vec::new(),
    };
    name_and_labels(request, limits, &mut check);
    batch_sizes(request, &mut check);
    runner(request, limits, &mut check);
    workload(request, limits, &mut check);
    target(request, &mut check);
    search(request, &mut check);
    questions(request, &mut check);
    quality(request, &mut check);
    optimizers(request, &mut check);
    batch_norm(request, &mut check);
    check.found
}

struct Check<'a> {
    cut: &'a [String],
    found: Vec<Violation>,
}

impl Check<'_> {
    /// Reports a violation unless it rests on something that was cut out.
    fn refuse(&mut self, pointer: &str, rests_on: &[&str], detail: String) {
        let touches = |place: &str, cut: &str| {
            let inside = |outer: &str, inner: &str| {
                inner
                    .strip_prefix(outer)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            inside(place, cut) || inside(cut, place)
        };
        let doubtful = self
            .cut
            .iter()
            .any(|cut| touches(pointer, cut) || rests_on.iter().any(|place| touches(place, cut)));
        if !doubtful {
            self.found.push(Violation::new(shortened(pointer), detail));
        }
    }
}

fn name_and_labels(request: &StudyRequest, limits: &DefinitionLimits, check: &mut Check<'_>) {
    if let Some(name) = &request.name {
        if name.trim().is_empty() {
            check.refuse("/name", &[], "must not be blank".into());
        }
        if name.chars().any(char::is_control) {
            check.refuse("/name", &[], "must not have control characters".into());
        }
    }
    for (key, value) in &request.labels {
        let pointer = child("/labels", key);
        let key_chars = key.chars().count() as u64;
        let max_key_chars = limits.max_label_key_chars;
        if key_chars == 0 || key_chars > max_key_chars {
            check.refuse(
                &pointer,
                &[],
                format!(
                    "a label's key must be 1 to {max_key_chars} characters long, is {key_chars}"
                ),
            );
        }
        let value_chars = value.chars().count() as u64;
        let max_value_chars = limits.max_label_value_chars;
        if value_chars > max_value_chars {
            check.refuse(
                &pointer,
                &[],
                format!("must be at most {max_value_chars} characters long, is {value_chars}"),
            );
        }
        if key.chars().chain(value.chars()).any(char::is_control) {
            check.refuse(&pointer, &[], "must not have control characters".into());
        }
    }
}

fn batch_sizes(request: &StudyRequest, check: &mut Check<'_>) {
    const MIN: &str = "/batch_sizes/min";
    const MAX: &str = "/batch_sizes/max";
    const VALUES: &str = "/batch_sizes/grid/values";
    let asked = &request.batch_sizes;
    let Some(facts) = request.workload.dataset.facts() else {
        return;
    };
    let examples = facts.training_examples;
    let devices = request.device.count;
    let min = asked.min.unwrap_or(smallest(devices));
    let max = asked.max.unwrap_or(largest(examples, devices));
    shares_out(request, check);
    let max_is = if asked.max.is_some() {
        format!("max, {max}")
    } else {
        format!("the number of training examples, {max}, which is max by default")
    };
    let max_rests_on = match asked.max {
        Some(_) => MAX,
        None => "/workload/dataset",
    };
    let rests_on = [MIN, MAX, max_rests_on];
    if min > max {
        check.refuse(
            MIN,
            &rests_on,
            format!("must be at most {max_is}; is {min}"),
        );
        return;
    }
    if let Grid::Values(values) = &asked.grid {
        for (index, value) in values.iter().enumerate() {
            let pointer = format!("{VALUES}/{index}");
            if *value < min || *value > max {
                check.refuse(
                    &pointer,
                    &rests_on,
                    format!("must be from min, {min}, to {max_is}; is {value}"),
                );
            }
            if values[..index].contains(value) {
                check.refuse(&pointer, &[], format!("{value} is already in the grid"));
            }
        }
    }
}

/// Every batch is shared out evenly among the devices.
fn shares_out(request: &StudyRequest, check: &mut Check<'_>) {
    const COUNT: &str = "/device/count";
    let devices = u64::from(request.device.count);
    let asked = &request.batch_sizes;
    let ends = [
        ("/batch_sizes/min", asked.min),
        ("/batch_sizes/max", asked.max),
    ];
    let mut named: Vec<(String, BatchSize)> = ends
        .into_iter()
        .filter_map(|(pointer, size)| Some((pointer.to_owned(), size?)))
        .collect();
    let mut list = |pointer: &str, sizes: &[BatchSize]| {
        named.extend(
            sizes
                .iter()
                .enumerate()
                .map(|(index, size)| (format!("{pointer}/{index}"), *size)),
        );
    };
    if let Some(size) = &request.batch_norm.batch_size {
        list("/batch_norm/batch_size", std::slice::from_ref(size));
    }
    if let Grid::Values(values) = &asked.grid {
        list("/batch_sizes/grid/values", values);
    }
    if let Some(sizes) = &request.quality.batch_sizes {
        list("/quality/batch_sizes", sizes);
    }
    for (pointer, size) in named {
        if devices > 1 && !size.0.is_multiple_of(devices) {
            check.refuse(
                &pointer,
                &[COUNT],
                format!(
                    "must be a multiple of device.count, {devices}, because every device takes an equal share of a batch; is {size}"
                ),
            );
        }
    }
}

fn runner(request: &StudyRequest, limits: &DefinitionLimits, check: &mut Check<'_>) {
    let runner = &request.runner;
    if !is_runner_name(&runner.name) {
        check.refuse(
            "/runner/name",
            &[],
            "must be 1 to 64 lowercase letters, digits, _ and -, as workers offer it".into(),
        );
    }
    if let Some(version) = &runner.version
        && (version.trim().is_empty() || version.chars().any(char::is_control))
    {
        check.refuse(
            "/runner/version",
            &[],
            "must not be blank nor have control characters".into(),
        );
    }
    let (max_bytes, max_depth) = (
        limits.max_runner_options_bytes,
        limits.max_runner_options_depth,
    );
    for (pointer, detail) in option_faults(&runner.options, max_bytes, max_depth) {
        check.refuse(&format!("/runner/options{pointer}"), &[], detail);
    }
    if let DatasetRequest::External(dataset) = &request.workload.dataset {
        external(&dataset.external, limits, check);
    }
    if let Some(Model::External { name, .. }) = &request.workload.model {
        let pointer = "/workload/model/name";
        named(name, pointer, limits, check);
    }
    if !runner.is_burn() {
        return;
    }
    let own = |what: &str| {
        format!(
            "{BURN} is the service's own program and has no {what}; leave it out, or name the runner that has"
        )
    };
    if runner.version.is_some() {
        check.refuse("/runner/version", &["/runner/name"], own("version to name"));
    }
    if !runner.options.is_empty() {
        check.refuse("/runner/options", &["/runner/name"], own("options"));
    }
    let elsewhere = |what: &str| {
        format!(
            "an external {what} is another program's; name its runner in runner.name, which is {BURN} now"
        )
    };
    if matches!(request.workload.dataset, DatasetRequest::External(_)) {
        check.refuse(
            "/workload/dataset/external",
            &["/runner"],
            elsewhere("data set"),
        );
    }
    if request
        .workload
        .model
        .as_ref()
        .is_some_and(Model::is_external)
    {
        check.refuse("/workload/model/family", &["/runner"], elsewhere("model"));
    }
}

/// What a study says of a data set that the service never sees.
fn external(facts: &ExternalFacts, limits: &DefinitionLimits, check: &mut Check<'_>) {
    const AT: &str = "/workload/dataset/external";
    named(&facts.name, &format!("{AT}/name"), limits, check);
    if facts.input.numbers() == 0 {
        check.refuse(
            &format!("{AT}/input"),
            &[],
            "every side must be at least 1".into(),
        );
    }
    let least = match facts.target {
        Target::Values { .. } => 1,
        Target::Classes { .. } | Target::NextToken { .. } => 2,
    };
    if facts.target.width() < least {
        check.refuse(
            &format!("{AT}/target"),
            &[],
            format!("must be at least {least}, is {}", facts.target.width()),
        );
    }
}

fn named(name: &str, pointer: &str, limits: &DefinitionLimits, check: &mut Check<'_>) {
    let chars = name.chars().count() as u64;
    let is_plain = !name.trim().is_empty() && !name.chars().any(char::is_control);
    if !is_plain || chars > limits.max_name_chars {
        check.refuse(
            pointer,
            &[],
            format!(
                "must be 1 to {} characters, not blank and without control characters",
                limits.max_name_chars
            ),
        );
    }
}

fn workload(request: &StudyRequest, limits: &DefinitionLimits, check: &mut Check<'_>) {
    const DATASET: &str = "/workload/dataset";
    const MODEL: &str = "/workload/model";
    let workload = &request.workload;
    let facts = match &workload.dataset {
        DatasetRequest::Builtin(dataset) => dataset.facts(),
        DatasetRequest::External(dataset) => dataset.facts(),
        DatasetRequest::Uploaded(dataset) => {
            let Some(facts) = uploaded(dataset, check) else {
                return;
            };
            facts
        }
    };
    let bytes = match &workload.dataset {
        DatasetRequest::Builtin(dataset) => dataset.bytes(),
        // It was let in when it was uploaded, or is never seen.
        DatasetRequest::Uploaded(_) | DatasetRequest::External(_) => 0,
    };
    if bytes > limits.max_synthetic_bytes {
        check.refuse(
            DATASET,
            &[],
            format!(
                "the examples, validation included, must take at most {}, take {}; ask for fewer or smaller ones",
                Bytes(limits.max_synthetic_bytes),
                if bytes == u64::MAX {
                    "more than can be counted".to_owned()
                } else {
                    Bytes(bytes).to_string()
                }
            ),
        );
        return;
    }
    if let Some(examples) = workload.validation_examples
        && examples > facts.validation_examples
    {
        check.refuse(
            "/workload/validation_examples",
            &[DATASET],
            format!(
                "must be at most the {} validation examples of the data set, is {examples}",
                facts.validation_examples
            ),
        );
    }
    if let Some(task) = workload.task
        && !task.fits(&facts.target)
    {
        let fitting: Vec<&str> = TaskKind::ALL
            .into_iter()
            .filter(|it| it.fits(&facts.target))
            .map(TaskKind::as_str)
            .collect();
        check.refuse(
            "/workload/task",
            &[DATASET],
            format!(
                "the data set is one for {}, not for {}; leave it out or take {}",
                facts.target.task(),
                task.as_str(),
                fitting.join(" or ")
            ),
        );
    }
    let fitting = Loss::of(&facts.target);
    if let Some(loss) = workload.loss
        && loss != fitting
    {
        check.refuse(
            "/workload/loss",
            &[DATASET],
            format!(
                "{} cannot be trained with {}; leave it out or take {}",
                facts.target.task(),
                loss.as_str(),
                fitting.as_str()
            ),
        );
    }
    if workload.label_smoothing > 0.0 && fitting != Loss::CrossEntropy {
        check.refuse(
            "/workload/label_smoothing",
            &[DATASET],
            format!(
                "must be 0 for {}, which has no labels to smooth",
                facts.target.task()
            ),
        );
    }
    let Some(model) = workload.model.as_ref().filter(|it| !it.is_external()) else {
        return;
    };
    match Network::new(model, &facts) {
        Err(error) => check.refuse(
            &format!("{MODEL}{}", error.pointer),
            &[MODEL, DATASET],
            error.detail,
        ),
        Ok(network) => {
            let (layers, parameters) = (network.depth(), network.parameters());
            if layers > limits.max_layers {
                check.refuse(
                    MODEL,
                    &[DATASET],
                    format!(
                        "the network must have at most {} layers, has {layers}",
                        limits.max_layers
                    ),
                );
            }
            if parameters > limits.max_parameters {
                check.refuse(
                    MODEL,
                    &[DATASET],
                    format!(
                        "the model must have at most {} parameters, has {parameters}",
                        limits.max_parameters
                    ),
                );
            }
        }
    }
}

/// The facts of an uploaded data set, if it is there and can be cut as asked.
fn uploaded(dataset: &UploadedRequest, check: &mut Check<'_>) -> Option<Facts> {
    const LENGTH: &str = "/workload/dataset/sequence_length";
    let Some(stored) = &dataset.stored else {
        check.refuse(
            "/workload/dataset/id",
            &[],
            format!(
                "there is no data set {}; GET /v1/datasets lists them",
                dataset.id
            ),
        );
        return None;
    };
    let facts = stored.contents.facts(dataset.sequence_length);
    match stored.contents {
        Contents::Text {
            training_tokens,
            validation_tokens,
            ..
        } => {
            if facts.training_examples == 0 || facts.validation_examples == 0 {
                let longest = training_tokens.min(validation_tokens).saturating_sub(1);
                check.refuse(
                    LENGTH,
                    &[],
                    format!("must be at most {longest}, so that both splits of the text have an example of it"),
                );
                return None;
            }
        }
        Contents::Examples { .. } => {
            if dataset.sequence_length.is_some() {
                check.refuse(
                    LENGTH,
                    &[],
                    "is for texts; this data set has examples of its own".into(),
                );
            }
        }
    }
    Some(facts)
}

fn target(request: &StudyRequest, check: &mut Check<'_>) {
    const TARGET: &str = "/workload/target";
    const RESTS_ON: [&str; 3] = ["/workload/dataset", "/workload/model", "/optimizer"];
    let (Some(target), Some(facts)) = (&request.workload.target, request.workload.dataset.facts())
    else {
        return;
    };
    let metric = target.metric;
    let is_quadratic = matches!(
        (&request.workload.dataset, &request.workload.model),
        (DatasetRequest::Builtin(dataset), Some(model)) if is_noisy_quadratic(dataset, model)
    );
    if metric == EvaluationMetric::ExpectedExcessLoss {
        if !is_quadratic {
            check.refuse(
                &format!("{TARGET}/metric"),
                &RESTS_ON,
                "expected_excess_loss is known of the noisy_quadratic with the model {\"family\": \"sequential\", \"layers\": [{\"layer\": \"scale\"}]} only".into(),
            );
        } else if !matches!(
            request.optimizer,
            Some(Optimizer::Sgd { .. } | Optimizer::SgdMomentum { .. })
        ) {
            check.refuse(
                "/optimizer",
                &RESTS_ON,
                "expected_excess_loss has a recursion for sgd and sgd_momentum only; name one of them".into(),
            );
        }
    } else if !metric.fits(&facts.target) {
        let fitting: Vec<&str> = EvaluationMetric::ALL
            .into_iter()
            .filter(|it| it.fits(&facts.target))
            .filter(|it| *it != EvaluationMetric::ExpectedExcessLoss || is_quadratic)
            .map(EvaluationMetric::as_str)
            .collect();
        check.refuse(
            &format!("{TARGET}/metric"),
            &RESTS_ON,
            format!(
                "{} has no {}; it has {}",
                facts.target.task(),
                metric.as_str(),
                fitting.join(", ")
            ),
        );
    }
    let own = if metric.is_minimized() {
        Goal::Minimize
    } else {
        Goal::Maximize
    };
    if target.goal.is_some_and(|goal| goal != own) {
        check.refuse(
            &format!("{TARGET}/goal"),
            &[],
            format!(
                "{} is to be {}; leave the goal out or say so",
                metric.as_str(),
                match own {
                    Goal::Minimize => "minimized",
                    Goal::Maximize => "maximized",
                }
            ),
        );
    }
    let (lowest, highest) = match metric {
        EvaluationMetric::ValidationAccuracy
        | EvaluationMetric::ValidationAuc
        | EvaluationMetric::ValidationErrorRate => (0.0, 1.0),
        EvaluationMetric::ValidationPerplexity => (1.0, f64::MAX),
        _ => (0.0, f64::MAX),
    };
    if !(lowest..=highest).contains(&target.value) {
        check.refuse(
            &format!("{TARGET}/value"),
            &[],
            if highest == f64::MAX {
                format!("must be at least {lowest}, is {}", target.value)
            } else {
                format!("must be from {lowest} to {highest}, is {}", target.value)
            },
        );
    }
}

fn search(request: &StudyRequest, check: &mut Check<'_>) {
    const NAMES: &str = "/search/hyperparameters";
    let optimizer = match (&request.optimizer, &request.workload.model) {
        (Some(optimizer), _) => optimizer.clone(),
        (None, Some(model)) => Optimizer::first_for(model),
        (None, None) => match request.workload.dataset.facts() {
            Some(facts) => Optimizer::first_for(&default_model(&facts)),
            None => return,
        },
    };
    let workload = &request.workload;
    let has = |name: Hyperparameter| match name {
        Hyperparameter::Dropout => {
            let dropout = workload.model.as_ref().and_then(Model::dropout);
            dropout.is_some_and(|dropout| dropout > 0.0)
        }
        Hyperparameter::LabelSmoothing => workload.label_smoothing > 0.0,
        other => optimizer.get(other).is_some(),
    };
    let has_not = |name: Hyperparameter| {
        let known: Vec<&str> = Hyperparameter::ALL
            .into_iter()
            .filter(|it| has(*it))
            .map(Hyperparameter::as_str)
            .collect();
        format!(
            "{} {} has no {}; it has {}",
            optimizer.family(),
            match name {
                Hyperparameter::Dropout | Hyperparameter::LabelSmoothing => "with this workload",
                _ => "",
            },
            name.as_str(),
            known.join(", ")
        )
        .replace("  ", " ")
    };
    let names = request.search.hyperparameters.as_deref();
    for (index, name) in names.unwrap_or_default().iter().enumerate() {
        let pointer = format!("{NAMES}/{index}");
        if !has(*name) {
            check.refuse(&pointer, &["/optimizer", "/workload/model"], has_not(*name));
        }
        if names.unwrap_or_default()[..index].contains(name) {
            check.refuse(
                &pointer,
                &[],
                format!("{} is already in the list", name.as_str()),
            );
        }
    }
    if names.is_some_and(|names| !names.contains(&Hyperparameter::LearningRate)) {
        check.refuse(
            NAMES,
            &[],
            "must have learning_rate in it: no comparison is fair without".into(),
        );
    }
    for (name, range) in &request.search.ranges {
        let pointer = format!("/search/ranges/{}", name.as_str());
        if !has(*name) {
            check.refuse(&pointer, &["/optimizer", "/workload/model"], has_not(*name));
        }
        if range.lower >= range.upper {
            check.refuse(
                &format!("{pointer}/lower"),
                &[],
                format!("must be below upper, {}; is {}", range.upper, range.lower),
            );
        }
        if name.is_complement() && range.upper > 1.0 {
            check.refuse(
                &format!("{pointer}/upper"),
                &[],
                format!(
                    "is one minus the hyperparameter and at most 1; is {}",
                    range.upper
                ),
            );
        }
    }
}

fn quality(request: &StudyRequest, check: &mut Check<'_>) {
    const SIZES: &str = "/quality/batch_sizes";
    let Some(facts) = request.workload.dataset.facts() else {
        return;
    };
    let sizes = request.quality.batch_sizes.as_deref().unwrap_or_default();
    for (index, size) in sizes.iter().enumerate() {
        let pointer = format!("{SIZES}/{index}");
        if size.0 > facts.training_examples {
            check.refuse(
                &pointer,
                &["/workload/dataset"],
                format!(
                    "must be at most the {} training examples, is {size}",
                    facts.training_examples
                ),
            );
        }
        if sizes[..index].contains(size) {
            check.refuse(&pointer, &[], format!("{size} is already in the list"));
        }
    }
    let asked = request.questions.as_deref().unwrap_or_default();
    let target = request.workload.target.as_ref();
    let position = asked
        .iter()
        .position(|it| *it == Question::QualityAcrossBatchSizes);
    if let (Some(index), Some(target)) = (position, target)
        && target.metric == EvaluationMetric::ExpectedExcessLoss
    {
        check.refuse(
            &format!("/questions/{index}"),
            &["/workload/target"],
            "is about losses that scatter from seed to seed, and an expectation has none; leave it out".into(),
        );
    }
}

fn optimizers(request: &StudyRequest, check: &mut Check<'_>) {
    const CANDIDATES: &str = "/optimizers/candidates";
    const NAMES: &str = "/optimizers/hyperparameters";
    let asked = &request.optimizers;
    let candidates = asked.candidates();
    let questions = request.questions.as_deref();
    if !candidates.is_empty() && questions.is_some_and(|it| !it.contains(&Question::Optimizer)) {
        check.refuse(
            CANDIDATES,
            &["/questions"],
            "are compared where the question optimizer is asked; add it, or leave the candidates out".into(),
        );
    }
    let target = request.workload.target.as_ref();
    let is_expected =
        target.is_some_and(|target| target.metric == EvaluationMetric::ExpectedExcessLoss);
    for (index, candidate) in candidates.iter().enumerate() {
        let has_recursion = matches!(
            candidate,
            Optimizer::Sgd { .. } | Optimizer::SgdMomentum { .. }
        );
        if is_expected && !has_recursion {
            check.refuse(
                &format!("{CANDIDATES}/{index}"),
                &["/workload/target"],
                "expected_excess_loss has a recursion for sgd and sgd_momentum only; name one of them".into(),
            );
        }
    }
    let names = asked.hyperparameters.as_deref().unwrap_or_default();
    if !names.is_empty() && candidates.is_empty() {
        check.refuse(
            NAMES,
            &[CANDIDATES],
            "are those of candidates, of which there are none; search.hyperparameters are the study's own".into(),
        );
        return;
    }
    for (index, name) in names.iter().enumerate() {
        let pointer = format!("{NAMES}/{index}");
        if candidates.iter().all(|it| it.get(*name).is_none()) {
            check.refuse(
                &pointer,
                &[CANDIDATES],
                format!("no candidate has the hyperparameter {}", name.as_str()),
            );
        }
        if names[..index].contains(name) {
            check.refuse(
                &pointer,
                &[],
                format!("{} is already in the list", name.as_str()),
            );
        }
    }
}

fn batch_norm(request: &StudyRequest, check: &mut Check<'_>) {
    const SIZE: &str = "/batch_norm/batch_size";
    let asked = &request.batch_norm;
    let questions = request.questions.as_deref();
    if asked.probe && questions.is_some_and(|it| !it.contains(&Question::BatchNorm)) {
        check.refuse(
            "/batch_norm/probe",
            &["/questions"],
            "is made where the question batch_norm is asked; add it, or leave the probe out".into(),
        );
    }
    let (Some(size), Some(facts)) = (asked.batch_size, request.workload.dataset.facts()) else {
        return;
    };
    if size.0 > facts.training_examples || size.0 < LEAST_GHOST_BATCH {
        check.refuse(
            SIZE,
            &["/workload/dataset"],
            format!(
                "must be from {LEAST_GHOST_BATCH}, the smallest ghost batch worth its statistics, to the {} training examples; is {size}",
                facts.training_examples
            ),
        );
    }
}

fn questions(request: &StudyRequest, check: &mut Check<'_>) {
    let asked = request.questions.as_deref().unwrap_or_default();
    for (index, question) in asked.iter().enumerate() {
        if asked[..index].contains(question) {
            check.refuse(
                &format!("/questions/{index}"),
                &[],
                "is already in the list; ask each question once".into(),
            );
        }
    }
}
