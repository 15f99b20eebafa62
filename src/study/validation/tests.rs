use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::study::{StudyDefinition, resolve};

fn smallest() -> Value {
    json!({"workload": {"dataset": {"builtin": "digits"}}})
}

fn with(pointer: &str, value: Value) -> Value {
    let mut posted = json!({
        "workload": {"dataset": {"builtin": "digits"}, "model": {"family": "mlp"}},
        "optimizer": {"family": "adam"},
        "batch_sizes": {}, "device": {}, "budget": {}, "labels": {}
    });
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    posted.pointer_mut(parent).expect("its parent")[name] = value;
    posted
}

fn refused(value: &Value) -> Vec<(String, String)> {
    parse(value, &DefinitionLimits::default())
        .expect_err("a violation")
        .into_iter()
        .map(|violation| (violation.pointer, violation.detail))
        .collect()
}

fn one(value: &Value) -> (String, String) {
    let all = refused(value);
    assert_eq!(all.len(), 1, "{all:?}");
    all.into_iter().next().expect("one")
}

#[track_caller]
fn says(value: &Value, pointer: &str, detail: &str) {
    assert_eq!(one(value), (pointer.to_owned(), detail.to_owned()));
}

#[test]
fn an_id_of_a_data_set_that_is_none_is_refused_where_it_stands() {
    let posted = json!({"workload": {"dataset": {"id": "zzz"}}});
    let violations = parse(&posted, &DefinitionLimits::default()).expect_err("no UUID");
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert_eq!(violations[0].pointer, "/workload/dataset/id");
    assert!(violations[0].detail.contains("UUID"));
}

#[test]
fn a_data_set_is_all_that_is_required() {
    parse(&smallest(), &DefinitionLimits::default()).expect("valid");
}

#[test]
fn the_example_of_the_contract_is_valid() {
    use utoipa::PartialSchema;
    let schema = serde_json::to_value(StudyRequest::schema()).expect("JSON");
    parse(&schema["example"], &DefinitionLimits::default()).expect("valid");
}

#[test]
fn a_missing_field_is_named_where_it_should_be() {
    says(&json!({}), "/workload", "is required and missing");
    says(
        &json!({"workload": {}}),
        "/workload/dataset",
        "is required and missing",
    );
    says(
        &json!({"workload": {"dataset": {}}}),
        "/workload/dataset/builtin",
        "is required and missing; one of: digits, synthetic, synthetic_images, linear_teacher, noisy_quadratic, markov_text",
    );
}

#[test]
fn an_unknown_field_is_named_with_what_is_allowed_and_what_was_meant() {
    says(
        &with("/workload/model/hiden", json!([64])),
        "/workload/model/hiden",
        "unknown field; allowed: activation, dropout, family, hidden, initialisation, normalization; did you mean hidden?",
    );
    says(
        &with("/optimizer/nesterov", json!(true)),
        "/optimizer/nesterov",
        "unknown field; allowed: beta_1, beta_2, epsilon, epsilon_form, family, learning_rate",
    );
    let mut posted = smallest();
    posted["batch_sise"] = json!({});
    let (pointer, detail) = one(&posted);
    assert_eq!(pointer, "/batch_sise");
    assert!(detail.ends_with("did you mean batch_sizes?"), "{detail}");
}

#[test]
fn a_tagged_union_is_judged_by_the_alternative_that_was_meant() {
    says(
        &with("/optimizer/beta_1", json!(1)),
        "/optimizer/beta_1",
        "must be less than 1, is 1",
    );
    says(
        &with("/optimizer/family", json!("adan")),
        "/optimizer/family",
        "must be one of: sgd, sgd_momentum, sgd_nesterov, rmsprop, adam, adamw, nadam; is the string \"adan\"; did you mean adam?",
    );
    says(
        &with("/workload/model/family", json!(7)),
        "/workload/model/family",
        "must be one of: mlp, cnn, resnet, transformer_encoder, transformer_lm, rnn, sequential, external; is 7",
    );
    says(
        &with("/optimizer", json!(["adam"])),
        "/optimizer",
        "must be an object with `family`, is an array",
    );
    says(
        &with("/batch_sizes/grid", json!("fibonacci")),
        "/batch_sizes/grid",
        "must be one of: powers_of_two; is the string \"fibonacci\"",
    );
    says(
        &with("/batch_sizes/grid", json!(3)),
        "/batch_sizes/grid",
        "must be \"powers_of_two\" or an object with `values`, is 3",
    );
    says(
        &with("/batch_sizes/grid", json!({"values": [4], "step": 2})),
        "/batch_sizes/grid/step",
        "unknown field; allowed: values",
    );
}

#[test]
fn numbers_say_their_bound_and_their_value() {
    for (pointer, value, detail) in [
        ("/batch_sizes/min", json!(0), "must be at least 1, is 0"),
        ("/batch_sizes/max", json!(-1), "must be at least 1, is -1"),
        (
            "/batch_sizes/max",
            json!(1e18),
            "must be at most 16777216, is 1e18",
        ),
        (
            "/batch_sizes/max",
            json!(1_000_000_000_000_000_000_u64),
            "must be at most 16777216, is 1000000000000000000",
        ),
        ("/batch_sizes/max", json!(2.5), "must be an integer, is 2.5"),
        ("/budget/device_secs", json!(0), "must be more than 0, is 0"),
        (
            "/budget/device_secs",
            json!(1e300),
            "must be at most 86400, is 1e300",
        ),
        (
            "/budget/device_secs",
            json!("NaN"),
            "must be a number, is the string \"NaN\"",
        ),
        (
            "/budget/probes",
            json!(u64::MAX),
            "must be at most 10000, is 18446744073709551615",
        ),
        ("/device/threads", json!(0), "must be at least 1, is 0"),
        (
            "/device/threads",
            json!(1e18),
            "must be at most 1024, is 1e18",
        ),
        (
            "/device/memory_budget_bytes",
            json!(1),
            "must be at least 16777216, is 1",
        ),
        ("/priority", json!(101), "must be at most 100, is 101"),
        (
            "/seed",
            json!(1e19),
            "must be at most 9007199254740991, is 1e19",
        ),
        (
            "/workload/model/dropout",
            json!(1),
            "must be less than 1, is 1",
        ),
        (
            "/optimizer/learning_rate",
            json!(0.0),
            "must be more than 0, is 0",
        ),
        (
            "/optimizer/learning_rate",
            json!(1e9),
            "must be at most 1000, is 1000000000",
        ),
        (
            "/workload/model/hidden",
            json!("64"),
            "must be an array, is the string \"64\"",
        ),
    ] {
        says(&with(pointer, value), pointer, detail);
    }
    says(
        &with("/workload/model/hidden", json!([64, 0])),
        "/workload/model/hidden/1",
        "must be at least 1, is 0",
    );
}

#[test]
fn whole_numbers_may_be_written_as_reals() {
    let request = parse(
        &with("/batch_sizes/max", json!(1e3)),
        &DefinitionLimits::default(),
    );
    assert_eq!(
        request.expect("valid").batch_sizes.max,
        Some(crate::study::BatchSize(1000))
    );
}

#[test]
fn fields_that_do_not_fit_together_are_named() {
    says(
        &with("/batch_sizes", json!({"min": 64, "max": 8})),
        "/batch_sizes/min",
        "must be at most max, 8; is 64",
    );
    says(
        &with("/batch_sizes", json!({"min": 2000})),
        "/batch_sizes/min",
        "must be at most the number of training examples, 1437, which is max by default; is 2000",
    );
    assert_eq!(
        refused(&with(
            "/batch_sizes",
            json!({"min": 4, "max": 64, "grid": {"values": [2, 8, 8, 128]}})
        )),
        [
            (
                "/batch_sizes/grid/values/0".into(),
                "must be from min, 4, to max, 64; is 2".to_owned()
            ),
            (
                "/batch_sizes/grid/values/2".into(),
                "8 is already in the grid".into()
            ),
            (
                "/batch_sizes/grid/values/3".into(),
                "must be from min, 4, to max, 64; is 128".into()
            ),
        ]
    );
    says(
        &with("/questions", json!(["throughput", "throughput"])),
        "/questions/1",
        "is already in the list; ask each question once",
    );
    says(
        &with("/questions", json!([])),
        "/questions",
        "must have at least 1 element, has 0",
    );
    let (pointer, detail) = one(&with(
        "/workload/model/hidden",
        json!([1_000_000, 1_000_000]),
    ));
    assert_eq!(pointer, "/workload/model");
    assert!(
        detail.contains("at most 10000000000 parameters"),
        "{detail}"
    );
    let (pointer, detail) = one(&with(
        "/workload/dataset",
        json!({"builtin": "synthetic", "examples": 1_000_000_000_000_u64, "features": 1_000_000_000}),
    ));
    assert_eq!(pointer, "/workload/dataset");
    assert!(detail.contains("must take at most 4.00 GiB"), "{detail}");
}

#[test]
fn names_and_labels_are_bounded() {
    says(
        &with("/name", json!("")),
        "/name",
        "must be at least 1 character long, is 0",
    );
    says(&with("/name", json!("  ")), "/name", "must not be blank");
    says(
        &with("/name", json!("x".repeat(201))),
        "/name",
        "must be at most 200 characters long, is 201",
    );
    says(
        &with("/labels", json!({"team": 7})),
        "/labels/team",
        "must be a string, is 7",
    );
    says(
        &with("/labels", json!({"a/b": "x".repeat(256)})),
        "/labels/a~1b",
        "must be at most 255 characters long, is 256",
    );
    let many: serde_json::Map<String, Value> = (0..33)
        .map(|index| (index.to_string(), json!("")))
        .collect();
    says(
        &with("/labels", Value::Object(many)),
        "/labels",
        "must have at most 32 members, has 33",
    );
}

#[test]
fn one_mistake_does_not_hide_another() {
    let posted = json!({
        "name": 5,
        "colour": "red",
        "workload": {
            "dataset": {"builtin": "digits", "split": 1},
            "model": {"family": "mlp", "hidden": [0, -3], "dropout": 2}
        },
        "optimizer": {"family": "sgd", "momentum": 0.9},
        "batch_sizes": {"min": 100, "max": 10, "resolution": "fine"},
        "questions": ["batch_size", "batch_size"]
    });
    let pointers: Vec<String> = refused(&posted)
        .into_iter()
        .map(|(pointer, _)| pointer)
        .collect();
    assert_eq!(
        pointers,
        [
            "/batch_sizes/min",
            "/batch_sizes/resolution",
            "/colour",
            "/name",
            "/optimizer/momentum",
            "/questions/1",
            "/workload/dataset/split",
            "/workload/model/dropout",
            "/workload/model/hidden/0",
            "/workload/model/hidden/1",
        ]
    );
}

#[test]
fn the_limits_are_the_servers() {
    let limits: DefinitionLimits =
        serde_json::from_value(json!({"max_probes": 5, "max_batch_size": 16})).expect("limits");
    let violations = parse(
        &json!({
            "workload": {"dataset": {"builtin": "synthetic", "examples": 16}},
            "budget": {"probes": 6}, "batch_sizes": {"max": 17}
        }),
        &limits,
    )
    .expect_err("violations");
    assert_eq!(
        violations,
        [
            Violation::new("/batch_sizes/max", "must be at most 16, is 17"),
            Violation::new("/budget/probes", "must be at most 5, is 6"),
        ]
    );
    serde_json::from_value::<DefinitionLimits>(json!({"max_probe": 5}))
        .expect_err("a typing error");
}

#[test]
fn a_member_given_twice_is_a_violation() {
    let rules = DefinitionRules::new(DefinitionLimits::default());
    let body = br#"{"workload": {"dataset": {"builtin": "digits"}}, "seed": 1, "seed": 2,
                    "batch_sizes": {"min": 0}}"#;
    let Err(Rejected::Invalid(violations)) = rules.parse_body(body, None) else {
        panic!("not refused");
    };
    assert_eq!(
        violations,
        [
            Violation::new("/batch_sizes/min", "must be at least 1, is 0"),
            Violation::new("/seed", "is given more than once; give it once"),
        ]
    );
}

#[test]
fn hostile_bodies_are_refused_and_nothing_breaks() {
    let rules = DefinitionRules::new(DefinitionLimits::default());
    let malformed: [&[u8]; 9] = [
        b"",
        b"{",
        b"{} {}",
        b"{\"seed\": 1e400}",
        b"{\"seed\": NaN}",
        b"\xff\xfe",
        b"{\"name\": \"\xc3\x28\"}",
        b"{\"name\": \"\\ud800\"}",
        &[b'['; 100_000],
    ];
    for body in malformed {
        let result = rules.parse_body(body, None);
        assert!(matches!(result, Err(Rejected::Malformed(_))), "{result:?}");
    }
    let deep = format!("{}{}", "[".repeat(120), "]".repeat(120));
    let wide: serde_json::Map<String, Value> = (0..10_000)
        .map(|index| (format!("k{index}"), json!(0)))
        .collect();
    for body in [
        b"[]".to_vec(),
        b"null".to_vec(),
        deep.into_bytes(),
        json!(wide).to_string().into_bytes(),
    ] {
        let Err(Rejected::Invalid(violations)) = rules.parse_body(&body, None) else {
            panic!("not refused");
        };
        assert!((1..=MAX_VIOLATIONS + 1).contains(&violations.len()));
    }
    let long = with("/name", json!("x".repeat(1_000_000)));
    let mut named = smallest();
    named["x".repeat(1_000_000)] = json!(1);
    for posted in [long, named] {
        let told: usize = refused(&posted)
            .iter()
            .map(|(p, d)| p.len() + d.len())
            .sum();
        assert!(told < 2_000, "{told} bytes echoed");
    }
}

/// Any JSON, with the contract's own names among the keys so that it gets past the first fence.
fn any_json() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(vec![
        "workload",
        "dataset",
        "builtin",
        "model",
        "family",
        "hidden",
        "optimizer",
        "batch_sizes",
        "min",
        "max",
        "grid",
        "values",
        "budget",
        "probes",
        "questions",
        "labels",
        "name",
        "~/",
        "",
    ]);
    let words = prop::sample::select(vec![
        "digits",
        "synthetic",
        "mlp",
        "adam",
        "sgd",
        "powers_of_two",
        "NaN",
        "batch_size",
        "cpu",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        words.prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(names.clone(), inner, 0..8).prop_map(|members| {
                Value::Object(
                    members
                        .into_iter()
                        .map(|(k, v)| (k.to_owned(), v))
                        .collect(),
                )
            }),
        ]
    })
}

fn valid_request() -> impl Strategy<Value = Value> {
    let dataset = prop_oneof![
        Just(json!({"builtin": "digits"})),
        (1_u64..10_000, 1_u64..1000, 2_u64..100).prop_map(|(examples, features, classes)| json!({
            "builtin": "synthetic", "examples": examples, "features": features, "classes": classes
        })),
    ];
    let optimizer = prop_oneof![
        (1e-6..10.0).prop_map(|rate| json!({"family": "sgd", "learning_rate": rate})),
        (0.0..1.0).prop_map(|momentum| json!({"family": "sgd_nesterov", "momentum": momentum})),
        (0.0..1.0, 0.0..1.0).prop_map(|(beta, decay)| json!({
            "family": "adamw", "beta_1": beta, "weight_decay": decay
        })),
    ];
    (
        dataset,
        optimizer,
        prop::collection::vec(1_u64..1000, 0..4),
        (0.0..1.0),
        (1_u64..100, 100_u64..10_000),
        0_u64..9_007_199_254_740_991,
    )
        .prop_map(|(dataset, optimizer, hidden, dropout, (min, max), seed)| {
            json!({
                "workload": {
                    "dataset": dataset,
                    "model": {"family": "mlp", "hidden": hidden, "dropout": dropout}
                },
                "optimizer": optimizer,
                "batch_sizes": {"min": min, "max": max},
                "seed": seed
            })
        })
}

#[test]
fn of_thousands_of_mistakes_the_first_are_put_into_words() {
    let rules = DefinitionRules::new(DefinitionLimits::default());
    let posted = |layers: Vec<Value>| {
        let model = json!({"family": "sequential", "layers": layers});
        let body = with("/workload/model", model).to_string();
        match rules.parse_body(body.as_bytes(), None) {
            Ok(_) => Vec::new(),
            Err(Rejected::Invalid(violations)) => violations,
            Err(other) => panic!("{other:?}"),
        }
    };
    let wrong = json!({"layer": "linear", "units": 0});
    for (count, more) in [(2, None), (150, Some(50))] {
        let all = posted(vec![wrong.clone(); count]);
        let (of_all, words): (Vec<Violation>, Vec<Violation>) =
            all.into_iter().partition(|it| it.pointer.is_empty());
        assert_eq!(words.len(), count.min(MAX_VIOLATIONS));
        assert!(words.iter().all(|it| it.pointer.ends_with("/units")));
        assert!(
            words
                .iter()
                .all(|it| it.detail == "must be at least 1, is 0")
        );
        let of_all: Vec<String> = of_all.into_iter().map(|it| it.detail).collect();
        let more = more.map(|more: usize| format!("and {more} more violations"));
        assert_eq!(of_all, Vec::from_iter(more));
    }
    let says = |all: &[Violation], pointer: &str, words: &str| {
        let found = all
            .iter()
            .any(|it| it.pointer == pointer && it.detail.contains(words));
        assert!(found, "{all:?}");
    };
    // Of tens of thousands the first are explained, and the list's length is told as it is.
    let all = posted(vec![wrong.clone(); 20_000]);
    assert!(all.len() <= MAX_VIOLATIONS + 1);
    says(&all, "", "there may be more violations");
    let layers = "/workload/model/layers";
    says(&all, layers, "must have at most 256 elements, has 20000");
    says(
        &all,
        &format!("{layers}/0/units"),
        "must be at least 1, is 0",
    );
    // What is right stays right, and what is wrong behind what is looked at is refused all the same.
    let right = json!({"layer": "linear", "units": 1});
    let block = json!({"layer": "residual", "layers": vec![right; 60]});
    let mut blocks = vec![
        json!({"layer": "flatten"}),
        json!({"layer": "linear", "units": 1}),
    ];
    blocks.extend(vec![block; 50]);
    blocks.push(json!({"layer": "output"}));
    assert_eq!(posted(blocks.clone()), []);
    blocks.push(wrong);
    says(&posted(blocks), "", "behind the first 2000 values");
    // A list that was cut short is not said to be too short, nor is what was not looked at judged any further.
    let mut long = with("/quality", json!({"batch_sizes": [16, 32]}));
    long["a"] = json!(vec![0; 2000]);
    long["batch_sizes"] = json!({"grid": {"values": Vec::from_iter(1..=100_000)}});
    let all = parse(&long, &DefinitionLimits::default()).expect_err("too long");
    let places: Vec<&str> = all.iter().map(|it| it.pointer.as_str()).collect();
    assert_eq!(places, ["", "/a"], "{all:?}");
}

proptest! {
    #[test]
    fn no_json_breaks_the_reader(value in any_json()) {
        let rules = DefinitionRules::new(DefinitionLimits::default());
        let by_value = rules.parse(&value, None);
        let by_body = rules.parse_body(value.to_string().as_bytes(), None);
        prop_assert_eq!(by_value.is_ok(), by_body.is_ok());
        if let Err(violations) = by_value {
            prop_assert!(!violations.is_empty());
            prop_assert!(violations.is_sorted());
        }
    }

    #[test]
    fn mistakes_inside_a_valid_request_break_nothing(
        mut posted in valid_request(),
        place in prop::sample::select(vec![
            "/workload", "/workload/dataset", "/workload/model", "/workload/model/hidden",
            "/optimizer", "/batch_sizes", "/batch_sizes/min", "/seed",
        ]),
        mistake in any_json(),
    ) {
        *posted.pointer_mut(place).expect("in every request") = mistake;
        if let Err(violations) = parse(&posted, &DefinitionLimits::default()) {
            for violation in violations {
                prop_assert!(
                    violation.pointer.starts_with(place) || place.starts_with(&violation.pointer)
                        || violation.pointer.starts_with("/batch_sizes"),
                    "{:?} for a mistake at {}", violation, place
                );
            }
        }
    }

    #[test]
    fn a_valid_request_survives_the_way_through_json(posted in valid_request()) {
        let request = parse(&posted, &DefinitionLimits::default()).expect("valid");
        let again = serde_json::to_value(&request).expect("JSON");
        prop_assert_eq!(&parse(&again, &DefinitionLimits::default()).expect("valid"), &request);
        let definition = resolve(request, None).expect("known");
        let text = serde_json::to_string(&definition).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<StudyDefinition>(&text).expect("reads"), definition);
    }
}
