//! What the playbook prescribes before anything is measured: a task that is supervised, or looks like it, and a
//! pipeline that trains and evaluates.

use serde_json::{Value, json};

use crate::fake;
use crate::service::{TestService, digits};

#[tokio::test]
async fn row_1_a_task_that_is_not_supervised_or_not_known_is_refused() {
    let service = TestService::without_workers().await;
    let with = |workload: Value| json!({ "workload": workload });
    for (workload, pointer) in [
        (
            json!({"dataset": {"builtin": "digits"}, "task": "reinforcement_learning"}),
            "/workload/task",
        ),
        (
            json!({"dataset": {"builtin": "digits"}, "task": "regression"}),
            "/workload/task",
        ),
        (
            json!({"dataset": {"builtin": "digits"}, "environment": "cart_pole"}),
            "/workload/environment",
        ),
        (
            json!({"dataset": {"builtin": "cart_pole"}}),
            "/workload/dataset",
        ),
    ] {
        let answer = service.post("/v1/studies", &with(workload)).await;
        let problem = answer.problem(422, "invalid_study");
        let errors = problem["errors"].as_array().expect("a list");
        assert!(
            errors.iter().any(|error| error["pointer"]
                .as_str()
                .is_some_and(|at| at.starts_with(pointer))),
            "{problem}"
        );
    }
    // The four kinds that are.
    for (dataset, task) in [
        ("digits", "classification"),
        ("linear_teacher", "regression"),
        ("markov_text", "language_modelling"),
        ("markov_text", "self_supervised"),
    ] {
        let body = with(json!({"dataset": {"builtin": dataset}, "task": task}));
        let answer = service.post("/v1/studies?dry_run=true", &body).await;
        assert_eq!(answer.status, 200, "{task}: {}", answer.text);
    }
}

/// A study whose children are these.
async fn ended(behaviour: &[&str]) -> Value {
    let runner = fake::executable().display().to_string();
    let command: Vec<String> = std::iter::once(runner)
        .chain(behaviour.iter().map(|it| (*it).to_owned()))
        .collect();
    let service = TestService::start(|settings| {
        settings.pool.child_command = Some(command);
        settings.pool.retry_delay_secs = 0.01;
    })
    .await;
    let path = service.create(&digits()).await;
    service.ended(&path).await
}

#[tokio::test]
async fn row_2_a_child_that_panics_is_a_broken_pipeline_with_the_end_of_its_log() {
    let study = ended(&["panic"]).await;
    assert_eq!(study["state"], "failed", "{study}");
    assert_eq!(study["ended_because"], "pipeline_broken", "{study}");
    let detail = study["ended_detail"].as_str().expect("says why");
    assert!(
        detail.starts_with("E_PIPELINE") && detail.contains("as told"),
        "{detail}"
    );
}

#[tokio::test]
async fn row_2_evaluations_that_differ_are_a_broken_pipeline() {
    let study = ended(&["infeasible", "pipeline_broken"]).await;
    assert_eq!(study["ended_because"], "pipeline_broken", "{study}");
    let detail = study["ended_detail"].as_str().expect("says why");
    assert!(detail.starts_with("E_PIPELINE"), "{detail}");
}

#[tokio::test]
async fn row_2_a_loss_that_is_not_a_number_is_a_broken_pipeline() {
    let service = TestService::training().await;
    let mut body = digits();
    // A linear model's squared error: each step multiplies the parameters by about a thousand.
    body["workload"] = json!({
        "dataset": {"builtin": "linear_teacher", "examples": 200, "features": 4},
        "model": {"family": "mlp", "hidden": []}
    });
    body["optimizer"] = json!({"family": "sgd", "learning_rate": 1000.0});
    let path = service.create(&body).await;
    let study = service.ended(&path).await;
    assert_eq!(study["ended_because"], "pipeline_broken", "{study}");
    let detail = study["ended_detail"].as_str().expect("says why");
    assert!(
        detail.starts_with("E_PIPELINE") && detail.contains("finite"),
        "{detail}"
    );
}
