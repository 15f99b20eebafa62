//! Where to start, with real children: a data set and no opinions give a configuration that can be posted again; what
//! real digits and shuffled ones are called, over a hundred seeds.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde_json::{Value, json};

use super::service::{Answer, TestService};

async fn advices(service: &TestService, path: &str) -> Vec<Value> {
    let advice = service.get(&format!("{path}/recommendations")).await.json();
    advice["items"].as_array().expect("a list").clone()
}

fn topic<'a>(advices: &'a [Value], name: &str) -> &'a Value {
    advices
        .iter()
        .find(|it| it["topic"] == name)
        .unwrap_or_else(|| panic!("no {name} in {advices:?}"))
}

fn codes(advice: &Value) -> Vec<&str> {
    let caveats = advice["caveats"].as_array().expect("a list");
    caveats
        .iter()
        .filter_map(|it| it["code"].as_str())
        .collect()
}

#[tokio::test]
async fn a_data_set_and_no_opinions_give_a_complete_configuration_within_the_default_budget() {
    let service = TestService::training().await;
    // The times of every batch size are another test's.
    let body = json!({
        "workload": {"dataset": {"builtin": "digits"}},
        "questions": ["initial_configuration", "optimizer"]
    });
    let path = service.create(&body).await;
    let study = service.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let advices = advices(&service, &path).await;
    let start = topic(&advices, "initial_configuration");
    println!("{}", start["summary"]);
    // The rule of thumb takes over what was tuned.
    let optimizer = topic(&advices, "optimizer");
    assert_eq!(
        optimizer["value"]["optimizer"],
        start["value"]["configuration"]["optimizer"]
    );
    assert!(
        !codes(optimizer).contains(&"W_UNTUNED:learning_rate"),
        "{optimizer}"
    );
    assert_eq!(start["value"]["initial_configuration"], "reasonable");
    assert_eq!(start["basis"], "measured");
    assert_eq!(start["value"]["ladder"].as_array().map(Vec::len), Some(1));
    assert_eq!(start["value"]["tuned"], json!(["learning_rate"]));
    assert_eq!(start["value"]["fixed"]["beta_1"], 0.9);
    assert_eq!(start["value"]["control"]["level"], "chance");
    let skill = start["value"]["skill"]["value"].as_f64().expect("measured");
    assert!(skill > 0.9, "{skill}");
    assert!(!start["evidence"].as_array().expect("a list").is_empty());
    let rate = topic(&advices, "learning_rate");
    println!("{}", rate["summary"]);
    let learning_rate = rate["value"]["learning_rate"].as_f64().expect("a number");
    assert!((1e-4..0.1).contains(&learning_rate), "{learning_rate}");
    let steps = topic(&advices, "number_of_steps");
    println!("{}", steps["summary"]);
    assert!(steps["value"]["number_of_steps"].as_u64() >= Some(100));

    // The known result on the digits, once more.
    let from = topic(&advices, "start_from");
    println!("{}", from["summary"]);
    assert_eq!(from["value"]["start_from"], "mlp");
    assert_eq!(from["value"]["reproduced"], true, "{from}");
    assert_eq!(from["confidence"]["grade"], "high");

    // It is in the report as it can be pasted, and it is a study's own words.
    let report = service.get(&format!("{path}/report")).await.text;
    assert!(report.contains("```json"), "{report}");
    let configuration = &start["value"]["configuration"];
    let pasted = json!({
        "workload": {
            "dataset": {"builtin": "digits"},
            "model": configuration["model"],
            "loss": configuration["loss"],
            "label_smoothing": configuration["label_smoothing"],
            "dtype": configuration["dtype"],
        },
        "optimizer": configuration["optimizer"],
        "schedule": configuration["schedule"],
        "gradient_clipping": configuration["gradient_clipping"],
        "batch_sizes": {"min": configuration["batch_size"], "max": configuration["batch_size"]},
    });
    let answer = service.post("/v1/studies?dry_run=true", &pasted).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

/// Values far from 0, as they often are: predictions wander by more than chance is off, so that some evaluation of a
/// model that knows nothing comes out well.
#[tokio::test]
async fn row_52_shuffled_values_far_from_zero_are_no_leak() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut normal = || -> f64 { StandardNormal.sample(&mut random) };
    let mut file = String::from("a,b,c,y\n");
    for _ in 0..400 {
        let x = [normal(), normal(), normal()];
        let y = 100.0 + 30.0 * x[0].sin() + 10.0 * x[1] * x[2] + 3.0 * normal();
        file.push_str(&format!("{},{},{},{y}\n", x[0], x[1], x[2]));
    }
    let service = TestService::training().await;
    let request = service
        .http
        .post(format!("{}/v1/datasets?format=csv&target=y", service.base))
        .body(file);
    let dataset = Answer::of(request).await.json();
    let mut leaks = 0;
    for seed in 0..8 {
        let body = json!({
            "workload": {"dataset": {"id": dataset["id"]}},
            "questions": ["initial_configuration"],
            "seed": seed
        });
        let path = service.create(&body).await;
        let study = service.ended(&path).await;
        assert_eq!(study["ended_because"], "answered", "{study}");
        let advices = advices(&service, &path).await;
        let start = topic(&advices, "initial_configuration");
        println!("seed {seed}: {}", start["value"]["control"]["skill"]);
        leaks += usize::from(codes(start).contains(&"W_LEAK"));
    }
    assert!(leaks <= 1, "{leaks} of 8 called a leak");
}

#[tokio::test]
async fn row_4_what_is_known_at_once_is_there_before_anything_has_run() {
    let service = TestService::without_workers().await;
    let body = json!({"workload": {"dataset": {"builtin": "markov_text"}}});
    let path = service.create(&body).await;
    let advices = advices(&service, &path).await;
    let from = topic(&advices, "start_from");
    assert_eq!(from["value"]["start_from"], "transformer_lm");
    assert_eq!(from["basis"], "rule_of_thumb");
    assert_eq!(advices.len(), 1, "nothing was measured: {advices:?}");
}

#[tokio::test]
async fn every_kind_of_task_gets_a_reasonable_configuration() {
    let service = TestService::training().await;
    for (dataset, family) in [
        (
            json!({"builtin": "linear_teacher", "examples": 1000, "features": 8}),
            "mlp",
        ),
        (
            json!({"builtin": "markov_text", "examples": 300, "sequence_length": 16, "vocabulary": 8}),
            "transformer_lm",
        ),
    ] {
        let model = if family == "mlp" {
            json!({"family": "mlp", "hidden": [16]})
        } else {
            json!({"family": family, "width": 16, "depth": 1, "heads": 2})
        };
        let path = service
            .create(&json!({
                "workload": {"dataset": dataset, "model": model},
                "questions": ["initial_configuration"],
                "batch_sizes": {"max": 128},
                "device": {"threads": 1}
            }))
            .await;
        let study = service.ended(&path).await;
        assert_eq!(study["ended_because"], "answered", "{study}");
        let advices = advices(&service, &path).await;
        let start = topic(&advices, "initial_configuration");
        println!("{family}: {}", start["summary"]);
        assert_eq!(start["value"]["initial_configuration"], "reasonable");
        // The least loss possible is known of these data sets.
        assert!(start["value"]["skill"]["ideal"].as_f64() > Some(0.0));
        assert!(!codes(start).contains(&"W_LEAK"), "{start}");
    }
}

#[tokio::test]
async fn row_3_a_handful_of_validation_examples_is_remarked_on() {
    let service = TestService::training().await;
    let body = |examples: u64| {
        json!({
            "workload": {
                "dataset": {"builtin": "synthetic", "examples": 8000, "features": 8, "classes": 3},
                "model": {"family": "mlp", "hidden": [4]},
                "validation_examples": examples
            },
            "optimizer": {"family": "sgd"},
            "questions": ["initial_configuration"],
            "device": {"threads": 1}
        })
    };
    for (examples, is_too_few) in [(50, true), (2000, false)] {
        let path = service.create(&body(examples)).await;
        service.ended(&path).await;
        let advices = advices(&service, &path).await;
        let start = topic(&advices, "initial_configuration");
        let is_remarked = codes(start).contains(&"W_EVAL_TOO_SMALL");
        assert_eq!(is_remarked, is_too_few, "{examples}: {start}");
    }
}
