//! GPUs as callers see them. What lists them here is a program that the test names, so that there is a GPU on any
//! host; everything else is the real thing.

use std::time::Duration;

use serde_json::{Value, json};
use trialhead::pool::host_lock::{HostLocks, LockMode};
use trialhead::settings::Settings;

use crate::fake;
use crate::service::{TestService, digits, trained};

const UUID: &str = "GPU-8f1c1c52-37a4-43d5-2cda-0fbb0a01a4f0";
const MODEL: &str = "Test card, driver 1.2";

/// A host with one card that CUDA and Vulkan reach, and a processor that pretends to be another.
fn with_a_card(settings: &mut Settings) {
    let card = |backend: &str| {
        json!({
            "backend": backend, "hardware": UUID, "name": "Test card", "driver": "driver 1.2",
            "memory_bytes": 8_u64 << 30, "available_bytes": 4_u64 << 30,
            "shares_host_memory": false, "is_software": false
        })
    };
    let mut software = card("vulkan");
    software["hardware"] = json!("vulkan-software");
    software["is_software"] = json!(true);
    let listed = json!([card("vulkan"), card("cuda"), software]);
    settings.pool.inventory_command = Some(vec![
        "sh".into(),
        "-c".into(),
        format!("printf '%s\\n' '{listed}'"),
    ]);
}

fn on(backend: &str) -> Value {
    let mut study = digits();
    study["device"] = json!({"backend": backend});
    study
}

async fn devices(service: &TestService) -> Vec<Value> {
    let listed = service.get("/v1/devices").await.json();
    listed["items"].as_array().expect("a list").clone()
}

#[tokio::test]
async fn every_card_of_a_host_is_listed_once_with_its_driver_and_memory() {
    let service = TestService::start(with_a_card).await;
    let devices = devices(&service).await;
    assert_eq!(devices.len(), 2, "{devices:?}");
    let card = devices
        .iter()
        .find(|device| device["hardware"] == UUID)
        .expect("the card");
    assert_eq!(card["backend"], "cuda");
    assert_eq!(card["model"], MODEL);
    assert_eq!(card["driver"], "driver 1.2");
    assert_eq!(card["memory_bytes"], json!(8_u64 << 30));
    assert_eq!(card["available_bytes"], json!(4_u64 << 30));
    assert_eq!(card["slots"], 1);
    let processor = devices
        .iter()
        .find(|device| device["hardware"] == "cpu")
        .expect("the processor");
    assert_eq!(processor["driver"], Value::Null);
}

#[tokio::test]
async fn a_list_that_fails_leaves_the_processor() {
    let service = TestService::start(|settings| {
        let command = [
            "sh",
            "-c",
            "echo 'error: the driver is broken' >&2; exit 139",
        ];
        settings.pool.inventory_command = Some(command.map(ToOwned::to_owned).to_vec());
    })
    .await;
    let hung = TestService::start(|settings| {
        let command = ["sleep", "1000"];
        settings.pool.inventory_command = Some(command.map(ToOwned::to_owned).to_vec());
        settings.pool.inventory_secs = 0.2;
    })
    .await;
    for service in [service, hung] {
        let devices = devices(&service).await;
        assert_eq!(devices.len(), 1);
        assert_eq!(devices[0]["backend"], "cpu");
    }
}

#[tokio::test]
async fn a_study_of_a_gpu_is_planned_on_it_within_a_share_of_its_memory() {
    let service = TestService::start(with_a_card).await;
    let path = service.create(&on("cuda")).await;
    let study = service.ended(&path).await;
    assert_eq!(study["state"], "succeeded", "{study}");
    let definition = service.get(&format!("{path}/definition")).await.json();
    assert_eq!(definition["device"]["model"], MODEL);
    let budget = definition["device"]["memory_budget_bytes"]
        .as_f64()
        .expect("a budget");
    let share = budget / (4_u64 << 30) as f64;
    assert!((share - 0.8).abs() < 1e-6, "{share}");
    let probes = service.get(&format!("{path}/probes")).await.json();
    for probe in probes["items"].as_array().expect("a list") {
        let worker = probe["probe"]["worker"].as_str().expect("its worker");
        assert!(worker.contains(UUID), "{worker}");
    }
}

#[tokio::test]
async fn a_child_is_told_which_card_is_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let told = folder.path().join("told");
    std::fs::write(&told, "").expect("written");
    let open = std::os::unix::fs::PermissionsExt::from_mode;
    std::fs::set_permissions(folder.path(), open(0o755)).expect("opened");
    std::fs::set_permissions(&told, open(0o666)).expect("opened");
    let runner = fake::executable().display().to_string();
    let script = format!(
        "echo $TRIALHEAD_DEVICE $CUDA_VISIBLE_DEVICES $XDG_CACHE_HOME >> {}; exec {runner} simulate 2e7 1e5 1e-3 1e-5",
        told.display()
    );
    let cache = folder.path().join("kernels");
    let service = TestService::start(|settings| {
        with_a_card(settings);
        settings.pool.child_command = Some(vec!["sh".into(), "-c".into(), script]);
        settings.pool.cache_dir = Some(cache.clone());
    })
    .await;
    let path = service.create(&on("cuda")).await;
    service.ended(&path).await;
    let told = std::fs::read_to_string(&told).expect("told");
    let expected = format!("{UUID} {UUID} {}", cache.display());
    assert!(!told.is_empty());
    assert!(told.lines().all(|line| line == expected), "{told}");
    assert!(cache.is_dir());
}

#[tokio::test]
async fn a_backend_that_no_worker_has_is_waited_for() {
    let service = TestService::start(with_a_card).await;
    let path = service.create(&on("metal")).await;
    let study = service.get(&path).await.json();
    assert_eq!(study["state"], "queued");
    assert_eq!(study["waiting_for"], "a live worker with a metal device");
    let answer = service.post("/v1/studies", &on("tpu")).await;
    let problem = answer.problem(422, "invalid_study");
    let error = &problem["errors"][0];
    assert_eq!(error["pointer"], "/device/backend");
    let detail = error["detail"].as_str().expect("a detail");
    for backend in ["cpu", "vulkan", "cuda", "metal", "rocm"] {
        assert!(detail.contains(backend), "{detail}");
    }
}

/// The tests' own build has no backend for a GPU; one with all of them would be asked for `rocm` and have no card.
#[tokio::test]
async fn a_runner_without_the_backend_says_so_and_the_study_ends_with_it() {
    let service = TestService::start(|settings| {
        with_a_card(settings);
        settings.pool.child_command = Some(trained());
    })
    .await;
    let path = service.create(&on("cuda")).await;
    let study = service.ended(&path).await;
    assert_eq!(study["state"], "failed", "{study}");
    let probes = service.get(&format!("{path}/probes")).await.json();
    let probe = &probes["items"][0]["probe"];
    assert_eq!(probe["state"], "infeasible", "{probe}");
    assert_eq!(probe["reason"], "device_unsupported");
    assert_eq!(probe["attempt"], 1, "{probe}");
    let detail = probe["detail"].as_str().expect("a detail");
    assert!(
        detail.contains("built without the cuda backend"),
        "{detail}"
    );
}

#[tokio::test]
async fn a_gpu_is_timed_while_nothing_is_timed_on_its_hosts_processor() {
    let service = TestService::start(|settings| {
        with_a_card(settings);
        settings.pool.devices = vec!["gpu".into()];
        settings.pool.device_wait_secs = 0.05;
    })
    .await;
    // Another service of this host times something on the processor.
    let directory = service.data_dir().with_file_name("locks");
    let locks = HostLocks::open(Some(&directory)).expect("opens");
    let timing = locks
        .acquire("cpu", LockMode::Exclusive, Duration::from_secs(10))
        .await
        .expect("can be tried")
        .expect("is free");
    let path = service.create(&on("cuda")).await;
    // The smoke probe shares; the first one that must be alone is handed back again and again.
    let probes = format!("{path}/probes");
    let handed_back = service
        .until(&probes, |probes| {
            probes["items"].as_array().is_some_and(|items| {
                items.iter().any(|probe| {
                    probe["probe"]["kind"] == "memory"
                        && probe["probe"]["attempt"]
                            .as_u64()
                            .is_some_and(|count| count >= 2)
                })
            })
        })
        .await;
    for probe in handed_back["items"].as_array().expect("a list") {
        let probe = &probe["probe"];
        if probe["kind"] != "smoke" {
            assert_ne!(probe["state"], "succeeded", "{probe}");
        }
    }
    drop(timing);
    let study = service.ended(&path).await;
    assert_eq!(study["state"], "succeeded", "{study}");
}
