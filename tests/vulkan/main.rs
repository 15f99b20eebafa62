//! Training through Vulkan, on whatever driver the loader finds: `scripts/test-vulkan` brings one that runs on
//! any processor. Real children, read as a worker reads them.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use trialhead::pool::child::{self, ChildConfig, ChildReport, ChosenGpu, Spawner};
use trialhead::pool::gpus;
use trialhead::probe::{
    GpuFacts, InfeasibleReason, Limits, Metric, Outcome, PROTOCOL, ProbeDevice, ProbeSpec,
    StepTimeSampling, Task, TrainingRun,
};
use trialhead::settings::PoolSettings;
use trialhead::study::{
    Backend, BatchSize, Bytes, Dataset, GradientClipping, Model, Optimizer, Schedule, Workload,
};

/// Kernels are tuned once for all tests of a run, and for the next run.
static KERNELS: LazyLock<PathBuf> =
    LazyLock::new(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("kernel-cache"));

/// This run's children, one at a time: a driver that computes on the processor has all of it.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What starts a program with the libraries of the driver, where those are newer than this system's.
const LOADER: &str = "TRIALHEAD_TEST_LOADER";

/// A driver that is known to compute wrongly.
const WRONG_DRIVER: &str = "TRIALHEAD_TEST_WRONG_DRIVER";

fn program(subcommand: &str) -> Option<Vec<String>> {
    let loader = std::env::var(LOADER).unwrap_or_default();
    let own = [env!("CARGO_BIN_EXE_trialhead"), subcommand];
    let loader = shlex::split(&loader).expect("words, quoted like a shell's");
    Some(loader.into_iter().chain(own.map(str::to_owned)).collect())
}

fn config() -> ChildConfig {
    ChildConfig {
        command: program("probe"),
        inventory_command: program("inventory"),
        // The build folder need not be open to another account.
        user: None,
        ..ChildConfig::default()
    }
}

async fn listed() -> Vec<GpuFacts> {
    let spawner = Spawner::new().expect("starts a thread");
    let settings = PoolSettings {
        inventory_command: program("inventory"),
        ..PoolSettings::default()
    };
    gpus::list(&spawner, &config(), &settings).await
}

/// The adapter that the tests run on.
async fn adapter() -> GpuFacts {
    let listed = listed().await;
    listed.into_iter().next().expect(
        "no Vulkan driver was found: run scripts/test-vulkan, which brings one, or set VK_DRIVER_FILES",
    )
}

async fn run_in(spec: &ProbeSpec, kernels: PathBuf) -> ChildReport {
    let gpu = match spec.device.backend {
        Backend::Cpu => None,
        backend => Some(ChosenGpu {
            backend,
            hardware: adapter().await.hardware,
            cache_dir: Some(kernels),
            host_memory_bytes: None,
        }),
    };
    run_with(spec, ChildConfig { gpu, ..config() }).await
}

async fn run_with(spec: &ProbeSpec, config: ChildConfig) -> ChildReport {
    let _turn = TURN.lock().await;
    let spawner = Spawner::new().expect("starts a thread");
    let (_control, control) = watch::channel(None);
    let (progress, told) = watch::channel(None);
    let report = child::run(&spawner, &config, spec, None, control, &progress).await;
    // Its first step may be minutes away: somebody who watches must hear of something.
    let is_told = spec.device.backend == Backend::Cpu || told.borrow().is_some();
    assert!(is_told, "{}", report.stderr_tail);
    report
}

async fn run(spec: &ProbeSpec) -> ChildReport {
    run_in(spec, KERNELS.clone()).await
}

fn figures(report: &ChildReport, metric: Metric) -> Vec<f64> {
    assert_eq!(report.outcome, Outcome::Succeeded, "{}", report.stderr_tail);
    report
        .measurements
        .iter()
        .filter(|one| one.metric == metric.as_str())
        .map(|one| one.value)
        .collect()
}

#[track_caller]
fn figure(report: &ChildReport, metric: Metric) -> f64 {
    let found = figures(report, metric);
    assert_eq!(found.len(), 1, "{metric:?}: {report:?}");
    found[0]
}

fn infeasible(report: &ChildReport) -> (InfeasibleReason, &str) {
    match &report.outcome {
        Outcome::Infeasible { reason, detail } => (*reason, detail),
        other => panic!("{other:?}\n{}", report.stderr_tail),
    }
}

fn spec(task: Task, backend: Backend) -> ProbeSpec {
    ProbeSpec {
        protocol: PROTOCOL,
        runner: Default::default(),
        task,
        workload: Workload::new(Dataset::digits(), Model::mlp(vec![64])),
        optimizer: Optimizer::nesterov(0.05, 0.9),
        schedule: Schedule::default(),
        gradient_clipping: GradientClipping::default(),
        device: ProbeDevice {
            backend,
            model: "test".into(),
            count: 1,
            threads: 2,
        },
        batch_size: BatchSize(64),
        replicate: 0,
        seed: 7,
        limits: Limits {
            memory_bytes: Bytes(4 * Bytes::GIB),
            wall_secs: 900.0,
        },
    }
}

fn model(value: Value) -> Model {
    serde_json::from_value(value).expect("a model")
}

#[tokio::test]
async fn the_adapter_is_listed_with_its_driver_and_memory() {
    let adapter = adapter().await;
    assert_eq!(adapter.backend, Backend::Vulkan);
    assert!(!adapter.name.is_empty() && !adapter.hardware.is_empty());
    assert!(
        adapter
            .driver
            .as_ref()
            .is_some_and(|driver| !driver.is_empty())
    );
    let memory = adapter.memory_bytes.expect("tells its memory");
    assert!(memory > Bytes(256 * Bytes::MIB), "{memory}");
}

#[tokio::test]
async fn software_is_offered_as_a_gpu_only_when_the_setting_says_so() {
    let spawner = Spawner::new().expect("starts a thread");
    let offered = async |software_gpus| {
        let settings = PoolSettings {
            software_gpus,
            ..PoolSettings::default()
        };
        let devices = gpus::devices_of_this_host(&spawner, &config(), &settings).await;
        devices
            .iter()
            .filter(|device| device.backend.is_gpu())
            .count()
    };
    let listed = listed().await;
    let software = listed.iter().filter(|gpu| gpu.is_software).count();
    assert_eq!(offered(true).await, listed.len());
    assert_eq!(offered(false).await, listed.len() - software);
}

/// Other random numbers begin the parameters on another backend, so it is where training gets that must agree.
#[tokio::test]
async fn an_mlp_and_a_cnn_learn_what_they_learn_on_the_processor() {
    for (network, steps) in [
        (json!({"family": "mlp", "hidden": [64]}), 120),
        (
            json!({"family": "cnn", "channels": [8, 16], "normalization": {"kind": "group", "groups": 4}}),
            300,
        ),
    ] {
        let mut losses = Vec::new();
        for backend in [Backend::Cpu, Backend::Vulkan] {
            let task = Task::Training(TrainingRun::new(steps, None, 1.5));
            let mut spec = spec(task, backend);
            spec.workload.model = model(network.clone());
            let report = run(&spec).await;
            let validation = figures(&report, Metric::ValidationCrossEntropy);
            let (first, last) = (validation[0], validation[validation.len() - 1]);
            assert!(first > 1.5, "{backend:?} {first}");
            assert_eq!(figure(&report, Metric::Steps), steps as f64);
            losses.push(last);
        }
        let [on_cpu, on_vulkan] = losses[..] else {
            panic!("two runs")
        };
        assert!(on_cpu < 0.5 && on_vulkan < 0.5, "{network}: {losses:?}");
        assert!((on_cpu - on_vulkan).abs() < 0.15, "{network}: {losses:?}");
    }
}

#[tokio::test]
async fn the_pipeline_runs_and_two_evaluations_agree() {
    let report = run(&spec(Task::Smoke { steps: 20 }, Backend::Vulkan)).await;
    let difference = figure(&report, Metric::EvaluationDifference);
    assert!(
        difference < 1e-3 * figure(&report, Metric::ValidationLoss),
        "{difference}"
    );
}

#[tokio::test]
async fn gradients_are_those_of_the_processor_at_every_shape() {
    for network in [
        json!({"family": "mlp", "hidden": [33, 17], "dropout": 0.5}),
        json!({"family": "cnn", "channels": [8, 16], "normalization": {"kind": "batch"}}),
    ] {
        for batch_size in [3, 16] {
            let mut spec = spec(Task::Smoke { steps: 1 }, Backend::Vulkan);
            spec.workload.model = model(network.clone());
            spec.batch_size = BatchSize(batch_size);
            let difference = figure(&run(&spec).await, Metric::GradientDifference);
            assert!(difference > 0.0 && difference < 1e-3, "{difference}");
        }
    }
}

/// SwiftShader leaves out loads of pointers, so some kernels for matrix products give zeros: and are quick.
#[expect(clippy::print_stderr, reason = "a test that is left out says so")]
#[tokio::test]
async fn a_device_that_computes_wrongly_is_unsupported() {
    let Ok(driver) = std::env::var(WRONG_DRIVER) else {
        eprintln!("NOT TESTED: {WRONG_DRIVER} names no driver that computes wrongly");
        return;
    };
    let command = ["env".to_owned(), format!("VK_DRIVER_FILES={driver}")]
        .into_iter()
        .chain(program("probe").into_iter().flatten());
    let kernels = tempfile::tempdir().expect("a folder");
    let config = ChildConfig {
        command: Some(command.collect()),
        gpu: Some(ChosenGpu {
            backend: Backend::Vulkan,
            // The only one.
            hardware: String::new(),
            cache_dir: Some(kernels.path().to_owned()),
            host_memory_bytes: None,
        }),
        ..config()
    };
    let report = run_with(&spec(Task::Smoke { steps: 2 }, Backend::Vulkan), config).await;
    let (reason, detail) = infeasible(&report);
    assert_eq!(reason, InfeasibleReason::DeviceUnsupported);
    assert!(detail.contains("of their norm"), "{detail}");
}

/// About 12 MiB of parameters, and 0.1 MiB an example.
fn large(task: Task, batch_size: u64) -> ProbeSpec {
    let mut spec = spec(task, Backend::Vulkan);
    spec.workload.model = Model::mlp(vec![1024, 1024]);
    spec.batch_size = BatchSize(batch_size);
    spec
}

#[tokio::test]
async fn memory_is_what_the_pool_reserves_and_grows_with_the_batch() {
    let mut peaks = Vec::new();
    for batch_size in [32, 1024] {
        let report = run(&large(Task::Memory { steps: 3 }, batch_size)).await;
        let parameters = figure(&report, Metric::ParameterMemory);
        // 64·1024 + 1024·1024 + 1024·10 weights and 2058 biases, four bytes each.
        assert!(parameters >= 4.0 * 1_126_410.0, "{parameters}");
        let in_use = figure(&report, Metric::PeakMemoryInUse);
        let reserved = figure(&report, Metric::PeakMemory);
        // Parameters, momenta and gradients.
        assert!(in_use > 2.0 * parameters, "{in_use}");
        assert!(reserved >= in_use, "{reserved} {in_use}");
        assert!(figure(&report, Metric::PeakResidentMemory) > 0.0);
        peaks.push((reserved, in_use));
    }
    assert!(peaks[1].1 > peaks[0].1 + 1024.0 * 4096.0, "{peaks:?}");
    assert!(peaks[1].0 >= peaks[0].0, "{peaks:?}");
}

#[tokio::test]
async fn a_pool_beyond_the_budget_is_out_of_memory() {
    let mut spec = large(Task::Memory { steps: 3 }, 512);
    spec.limits.memory_bytes = Bytes(4 * Bytes::MIB);
    let report = run(&spec).await;
    let (reason, detail) = infeasible(&report);
    assert_eq!(reason, InfeasibleReason::OutOfMemory);
    assert!(
        detail.contains("memory budget is 4194304 bytes"),
        "{detail}"
    );
}

#[tokio::test]
async fn a_type_that_the_device_does_not_compute_in_is_unsupported() {
    let mut spec = spec(Task::Smoke { steps: 2 }, Backend::Vulkan);
    spec.workload.dtype = serde_json::from_value(json!("bfloat16")).expect("a type");
    let report = run(&spec).await;
    if report.outcome == Outcome::Succeeded && !adapter().await.is_software {
        return; // A card that has it.
    }
    let (reason, detail) = infeasible(&report);
    assert_eq!(reason, InfeasibleReason::DeviceUnsupported);
    assert!(detail.contains("bfloat16"), "{detail}");
}

#[tokio::test]
async fn a_device_that_is_gone_is_unsupported() {
    let spec = spec(Task::Smoke { steps: 2 }, Backend::Vulkan);
    let config = ChildConfig {
        gpu: Some(ChosenGpu {
            backend: Backend::Vulkan,
            hardware: "0000:ff:00.0".into(),
            cache_dir: None,
            host_memory_bytes: None,
        }),
        ..config()
    };
    let report = run_with(&spec, config).await;
    let (reason, detail) = infeasible(&report);
    assert_eq!(reason, InfeasibleReason::DeviceUnsupported);
    assert!(detail.contains("0000:ff:00.0"), "{detail}");
}

#[tokio::test]
async fn kernels_are_tuned_once_and_kept_for_the_next_child() {
    let folder = tempfile::tempdir().expect("a folder");
    let kernels = folder.path().join("kernels");
    let mut spec = spec(
        Task::StepTime(StepTimeSampling {
            first_look_blocks: 3,
            max_secs: 1.0,
            canary_secs: 0.0,
            ..StepTimeSampling::default()
        }),
        Backend::Vulkan,
    );
    spec.workload.model = Model::mlp(vec![32]);
    let first = run_in(&spec, kernels.clone()).await;
    let first_step = figure(&first, Metric::CompileSecs);
    assert!(figure(&first, Metric::TimePerStepMedian) > 0.0);
    let kept = std::fs::read_dir(kernels.join("cubecl")).expect("kept something");
    let bytes: u64 = kept
        .map(|entry| {
            entry
                .and_then(|entry| entry.metadata())
                .expect("a file")
                .len()
        })
        .sum();
    assert!(bytes > 0);
    let second = run_in(&spec, kernels).await;
    let second_step = figure(&second, Metric::CompileSecs);
    assert!(
        second_step < 0.7 * first_step,
        "{first_step} s, then {second_step} s"
    );
}

#[tokio::test]
async fn a_list_that_takes_too_long_is_given_up() {
    let spawner = Spawner::new().expect("starts a thread");
    let report = child::inventory(&spawner, &config(), Duration::from_nanos(1)).await;
    assert_eq!(infeasible(&report).0, InfeasibleReason::TooSlow);
}
