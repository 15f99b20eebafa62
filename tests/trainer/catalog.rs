//! The catalog against the types that it describes.

use serde_json::{Map, Value, json};
use trialhead::catalog::{Component, Parameter, ParameterType, catalog};
use trialhead::probe::{Metric, ProbeKind};
use trialhead::study::{
    Dataset, EvaluationMetric, GradientClipping, Initialisation, Layer, Loss, Model, Normalization,
    Optimizer, Schedule, Target, WorkloadRequest,
};

#[test]
fn the_catalog_speaks_the_studys_and_the_probes_language() {
    let catalog = catalog();
    for optimizer in &catalog.optimizers {
        let parsed: Optimizer =
            serde_json::from_value(json!({"family": optimizer.name})).expect("an optimizer");
        assert_eq!(parsed.family(), optimizer.name);
        assert_eq!(parsed.state_per_parameter(), optimizer.state_per_parameter);
        let mut defaults = serde_json::to_value(&parsed).expect("serialises");
        let fields = defaults.as_object_mut().expect("an object");
        fields.remove("family");
        assert_eq!(
            fields.len(),
            optimizer.hyperparameters.len() + optimizer.forms.len()
        );
        for form in &optimizer.forms {
            assert_eq!(fields[form.name], form.default);
            for choice in &form.choices {
                let posted = json!({"family": optimizer.name, form.name: choice});
                serde_json::from_value::<Optimizer>(posted).expect("a form");
            }
        }
        for hyperparameter in &optimizer.hyperparameters {
            assert_eq!(
                fields[hyperparameter.name].as_f64(),
                Some(hyperparameter.default)
            );
        }
    }
    for family in &catalog.model_families {
        for size in &family.sizes {
            let mut model = size.parameters.clone();
            model["family"] = json!(family.name);
            let model: Model = serde_json::from_value(model).expect("a model");
            assert_eq!(model.family(), family.name);
        }
        if family.parameters.iter().any(|parameter| parameter.required) {
            continue;
        }
        assert!(!family.sizes.is_empty() && family.known_result.is_some());
        let mut posted = serde_json::Map::from_iter([("family".to_owned(), json!(family.name))]);
        let defaults: Model =
            serde_json::from_value(posted.clone().into()).expect("every field has a default");
        for parameter in &family.parameters {
            posted.insert(parameter.name.to_owned(), parameter.default.clone());
            for choice in &parameter.choices {
                let mut posted = posted.clone();
                posted.insert(parameter.name.to_owned(), json!(choice));
                serde_json::from_value::<Model>(posted.into()).expect("a choice");
            }
        }
        let explicit: Model = serde_json::from_value(posted.clone().into()).expect("a model");
        assert_eq!(explicit, defaults);
        let all = serde_json::to_value(&defaults).expect("serialises");
        assert_eq!(posted.len(), all.as_object().expect("an object").len());
        assert_eq!(
            Optimizer::first_for(&defaults).family(),
            family.first_optimizer
        );
        assert!(
            catalog
                .optimizers
                .iter()
                .any(|optimizer| optimizer.name == family.first_optimizer)
        );
    }
    for dataset in &catalog.datasets {
        let defaults: Dataset =
            serde_json::from_value(json!({"builtin": dataset.name})).expect("a data set");
        assert_eq!(defaults.name(), dataset.name);
        let mut posted = json!({"builtin": dataset.name});
        for parameter in &dataset.parameters {
            posted[parameter.name] = parameter.default.clone();
        }
        let explicit: Dataset = serde_json::from_value(posted).expect("a data set");
        assert_eq!(explicit, defaults);
    }
    for loss in &catalog.losses {
        serde_json::from_value::<Loss>(json!(loss.name)).expect("a loss");
    }
    let metrics: Vec<_> = catalog
        .metrics
        .iter()
        .map(|entry| (entry.name, entry.unit))
        .collect();
    let expected: Vec<_> = Metric::ALL
        .iter()
        .map(|metric| (metric.as_str(), metric.unit()))
        .collect();
    assert_eq!(metrics, expected);
    let kinds: Vec<_> = catalog
        .probe_kinds
        .iter()
        .map(|entry| (entry.name, entry.exclusive))
        .collect();
    let expected: Vec<_> = ProbeKind::ALL
        .iter()
        .map(|kind| (kind.as_str(), kind.is_exclusive()))
        .collect();
    assert_eq!(kinds, expected);
}

/// A value that a parameter allows: its default, or the smallest that may be given.
fn value(parameter: &Parameter) -> Value {
    if !parameter.required {
        return parameter.default.clone();
    }
    match parameter.value_type {
        ParameterType::Integer => json!(parameter.minimum.expect("a bound") as u64),
        ParameterType::Real => {
            let minimum = parameter.minimum.expect("a bound");
            json!(if parameter.exclusive_minimum {
                minimum + 0.5
            } else {
                minimum
            })
        }
        ParameterType::Choice => json!(parameter.choices[0]),
        ParameterType::Normalization => json!({"kind": "none"}),
        ParameterType::LayerList => json!([{"layer": "flatten"}]),
        other => panic!("{other:?} always has a default"),
    }
}

/// Every component is what `T` reads, with exactly the parameters that it has.
fn check<T: serde::Serialize + serde::de::DeserializeOwned>(tag: &str, components: &[Component]) {
    for component in components {
        let mut least = Map::from_iter([(tag.to_owned(), json!(component.name))]);
        let mut all = least.clone();
        for parameter in &component.parameters {
            if parameter.required {
                least.insert(parameter.name.to_owned(), value(parameter));
            }
            // An optional value that is left out is left out in JSON, too.
            if parameter.required || !parameter.default.is_null() {
                all.insert(parameter.name.to_owned(), value(parameter));
            }
        }
        let parse = |fields: &Map<String, Value>| -> Value {
            let parsed: T = serde_json::from_value(fields.clone().into())
                .unwrap_or_else(|error| panic!("{}: {error}", component.name));
            serde_json::to_value(&parsed).expect("serialises")
        };
        assert_eq!(parse(&least), parse(&all), "{}", component.name);
        assert_eq!(parse(&all), Value::from(all.clone()), "{}", component.name);
    }
}

#[test]
fn everything_that_has_a_kind_is_described_with_its_parameters() {
    let catalog = catalog();
    check::<Layer>("layer", &catalog.layers);
    check::<Normalization>("kind", &catalog.normalizations);
    check::<Schedule>("kind", &catalog.schedules);
    check::<GradientClipping>("kind", &catalog.gradient_clipping);
    for component in &catalog.initialisations {
        serde_json::from_value::<Initialisation>(json!(component.name)).expect("one");
    }
    // Nothing is missing: the contract lists the alternatives.
    let document: Value =
        serde_json::from_str(include_str!("../../openapi/openapi.json")).expect("JSON");
    let alternatives = |schema: &str| {
        let at = format!("/components/schemas/{schema}");
        let schema = document.pointer(&at).expect("a schema");
        let list = schema.get("oneOf").or_else(|| schema.get("enum"));
        list.and_then(Value::as_array).expect("alternatives").len()
    };
    for (schema, described) in [
        ("Layer", catalog.layers.len()),
        ("Normalization", catalog.normalizations.len()),
        ("Schedule", catalog.schedules.len()),
        ("GradientClipping", catalog.gradient_clipping.len()),
        ("Initialisation", catalog.initialisations.len()),
        ("Model", catalog.model_families.len()),
        ("Optimizer", catalog.optimizers.len()),
        ("Loss", catalog.losses.len()),
        ("EvaluationMetric", catalog.evaluation_metrics.len()),
    ] {
        assert_eq!(alternatives(schema), described, "{schema}");
    }
}

#[test]
fn what_else_a_workload_may_say_is_described() {
    let catalog = catalog();
    let mut posted = json!({"dataset": {"builtin": "digits"}});
    for option in &catalog.workload_options {
        posted[option.name] = option.default.clone();
    }
    let explicit: WorkloadRequest = serde_json::from_value(posted).expect("a workload");
    let least: WorkloadRequest =
        serde_json::from_value(json!({"dataset": {"builtin": "digits"}})).expect("a workload");
    assert_eq!(explicit, least);
    let fields = serde_json::to_value(&least).expect("serialises");
    for name in fields.as_object().expect("an object").keys() {
        assert!(
            name == "dataset" || catalog.workload_options.iter().any(|one| one.name == name),
            "{name} is not described"
        );
    }
}

#[test]
fn evaluation_metrics_are_described_with_the_tasks_that_have_them() {
    let tasks = [
        Target::Classes { count: 2 },
        Target::Values { count: 1 },
        Target::NextToken { vocabulary: 2 },
    ];
    for (metric, entry) in EvaluationMetric::ALL
        .into_iter()
        .zip(catalog().evaluation_metrics)
    {
        assert_eq!(json!(metric), entry.name);
        assert_eq!(Metric::from(metric).as_str(), entry.name);
        assert_eq!(Metric::from(metric).unit(), entry.unit);
        assert_eq!(metric.is_minimized(), entry.minimized);
        let having: Vec<&str> = tasks
            .iter()
            .filter(|task| metric.fits(task))
            .map(Target::task)
            .collect();
        assert_eq!(having, entry.tasks, "{}", entry.name);
    }
}
