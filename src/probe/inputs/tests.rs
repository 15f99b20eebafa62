use super::*;
use crate::probe::{
    Accumulation, Limits, NoiseScaleRun, PROTOCOL, RangeTest, StepTimeSampling, TrainingRun,
    TurnSampling,
};

fn spec(task: Task) -> ProbeSpec {
    ProbeSpec {
        protocol: PROTOCOL,
        runner: Default::default(),
        task,
        workload: crate::study::Workload::new(synthetic(1), Model::mlp(vec![64])),
        optimizer: Optimizer::nesterov(0.1, 0.9),
        schedule: Schedule::default(),
        gradient_clipping: GradientClipping::default(),
        device: ProbeDevice {
            backend: Backend::Cpu,
            model: "a processor".into(),
            count: 1,
            threads: 2,
        },
        batch_size: BatchSize(16),
        replicate: 0,
        seed: 7,
        limits: Limits {
            memory_bytes: Bytes(1 << 30),
            wall_secs: 60.0,
        },
    }
}

fn synthetic(seed: u64) -> Dataset {
    Dataset::Builtin(crate::study::BuiltinDataset::Synthetic {
        examples: 1000,
        features: 20,
        classes: 4,
        seed,
    })
}

fn tasks() -> [Task; 9] {
    let sampling = TurnSampling::default();
    [
        Task::Smoke { steps: 20 },
        Task::Memory { steps: 20 },
        Task::Confirmation { steps: 200 },
        Task::StepTime(StepTimeSampling::default()),
        Task::InputPipeline(sampling.clone()),
        Task::GradientAccumulation(Accumulation {
            micro_batches: 4,
            with_whole_batch: true,
            sampling,
        }),
        Task::Training(TrainingRun::new(100, None, 1.03)),
        Task::LearningRateRange(RangeTest::usual(false)),
        Task::NoiseScale(NoiseScaleRun {
            steps: 50,
            small_batch: 16,
            small_batches: 32,
            points: 18,
        }),
    ]
}

use ProbeKind::{
    Confirmation, GradientAccumulation, InputPipeline as Parts, LearningRateRange,
    Memory as MemoryKind, NoiseScale, Smoke, StepTime, Training,
};

/// The kinds of probes whose figures a change of the specification leaves untouched.
fn kept(change: impl Fn(&mut ProbeSpec)) -> Vec<ProbeKind> {
    tasks()
        .into_iter()
        .map(spec)
        .filter(|before| {
            let mut after = before.clone();
            change(&mut after);
            let hash = |spec: &ProbeSpec| inputs("default", None, spec).expect("hashes");
            let is_kept = hash(before) == hash(&after);
            assert_eq!(is_kept, is_same(before, &after), "{:?}", before.kind());
            is_kept
        })
        .map(|spec| spec.kind())
        .collect()
}

const DEVICE: [ProbeKind; 5] = [
    MemoryKind,
    Confirmation,
    StepTime,
    Parts,
    GradientAccumulation,
];
const TRAINED: [ProbeKind; 3] = [Training, LearningRateRange, NoiseScale];

#[test]
fn each_kind_depends_on_exactly_its_inputs() {
    assert_eq!(kept(|_| {}).len(), 9);
    // Model, sizes, dtype: everything.
    assert_eq!(kept(|it| it.workload.model = Model::mlp(vec![65])), []);
    assert_eq!(kept(|it| it.workload.dtype = DType::Bfloat16), []);
    // Another optimizer, or a setting that is a further operation.
    assert_eq!(kept(|it| it.optimizer = Optimizer::adam()), []);
    assert_eq!(
        kept(|it| it.optimizer.set(Hyperparameter::WeightDecay, 1e-4)),
        []
    );
    assert_eq!(
        kept(|it| it.gradient_clipping = GradientClipping::Value { max_value: 1.0 }),
        []
    );
    // Its numbers.
    assert_eq!(
        kept(|it| it.optimizer.set(Hyperparameter::Momentum, 0.5)),
        DEVICE
    );
    assert_eq!(
        kept(|it| it.schedule = Schedule::Constant { warm_up_steps: 5 }),
        DEVICE
    );
    assert_eq!(kept(|it| it.seed = 8), DEVICE);
    let with_range: Vec<ProbeKind> = DEVICE.into_iter().chain([LearningRateRange]).collect();
    assert_eq!(
        kept(|it| it.optimizer.set(Hyperparameter::LearningRate, 0.5)),
        with_range
    );
    // Examples that say something else; others of another shape.
    assert_eq!(kept(|it| it.workload.dataset = synthetic(2)), DEVICE);
    assert_eq!(
        kept(|it| it.workload.validation_examples = Some(50)),
        DEVICE
    );
    assert_eq!(kept(|it| it.workload.dataset = Dataset::digits()), []);
    // The target.
    let target = crate::study::EvaluationTarget {
        metric: crate::study::EvaluationMetric::ValidationCrossEntropy,
        value: 0.3,
    };
    let all_but_training: Vec<ProbeKind> = kept(|it| {
        if let Task::Training(run) = &mut it.task {
            run.target = Some(target.clone());
        }
    });
    assert_eq!(all_but_training.len(), 8);
    assert!(!all_but_training.contains(&Training));
    // Device model and threads; how batches come; who runs it.
    assert_eq!(kept(|it| it.device.model = "another".into()), TRAINED);
    assert_eq!(kept(|it| it.device.threads = 4), TRAINED);
    assert_eq!(kept(|it| it.workload.input_pipeline.threads = 3), TRAINED);
    // Batch size and replicate: another measurement.
    assert_eq!(kept(|it| it.batch_size = BatchSize(32)), []);
    assert_eq!(kept(|it| it.replicate = 1), []);
    // Limits decide outcomes, not figures.
    assert_eq!(
        kept(|it| {
            it.limits.memory_bytes = Bytes(1 << 31);
            it.limits.wall_secs = 1.0;
        })
        .len(),
        9
    );
}

#[test]
fn a_new_way_of_measuring_keeps_what_training_came_to() {
    let kept = |versions: Versions<'_>| -> Vec<ProbeKind> {
        tasks()
            .into_iter()
            .map(spec)
            .filter(|spec| {
                let hash = |versions| hash("default", None, spec, versions).expect("hashes");
                hash(NOW) == hash(versions)
            })
            .map(|spec| spec.kind())
            .collect()
    };
    let runner = Versions {
        runner: "another",
        ..NOW
    };
    let protocol = Versions {
        measurement_protocol: 99,
        ..NOW
    };
    let arithmetic = Versions {
        training: "another",
        ..NOW
    };
    assert_eq!(kept(runner), TRAINED);
    assert_eq!(kept(protocol), TRAINED);
    let of_device: Vec<ProbeKind> = [Smoke].into_iter().chain(DEVICE).collect();
    assert_eq!(kept(arithmetic), of_device);
}

#[test]
fn what_somebody_elses_program_measures_is_its_own_in_every_version_and_under_every_option() {
    let pytorch = Runner {
        name: "pytorch".into(),
        version: Some("1".into()),
        options: serde_json::Map::new(),
    };
    assert_eq!(kept(|it| it.runner = pytorch.clone()), []);
    for task in tasks() {
        let mut spec = spec(task);
        spec.runner = pytorch.clone();
        let base = inputs("default", None, &spec).expect("hashes");
        for change in [
            |it: &mut Runner| it.version = Some("2".into()),
            |it: &mut Runner| it.name = "jax".into(),
            |it: &mut Runner| {
                it.options.insert("layers".into(), 3.into());
            },
        ] {
            let mut other = spec.clone();
            change(&mut other.runner);
            assert_ne!(base, inputs("default", None, &other).expect("hashes"));
        }
        // A release of the service is nothing to it.
        let released = Versions {
            runner: "another",
            training: "another",
            ..NOW
        };
        assert_eq!(
            base,
            hash("default", None, &spec, released).expect("hashes")
        );
        // Data that only it has: of the same shape, under another name.
        let external = |name: &str| {
            let facts = spec.workload.dataset.facts();
            Dataset::External(crate::study::ExternalDataset {
                external: ExternalFacts {
                    name: name.into(),
                    input: facts.input,
                    target: facts.target,
                    training_examples: facts.training_examples,
                    validation_examples: facts.validation_examples,
                },
            })
        };
        let of = |name: &str| {
            let mut spec = spec.clone();
            spec.workload.dataset = external(name);
            inputs("default", None, &spec).expect("hashes")
        };
        assert_eq!(of("images"), of("images"));
        assert_ne!(of("images"), of("other images"));
    }
}

#[test]
fn another_project_and_a_study_that_refuses_reuse_have_probes_of_their_own() {
    for task in tasks() {
        let spec = spec(task);
        let base = inputs("default", None, &spec).expect("hashes");
        assert_ne!(base, inputs("other", None, &spec).expect("hashes"));
        let study = StudyId(uuid::Uuid::from_u128(7));
        assert_ne!(base, inputs("default", Some(study), &spec).expect("hashes"));
    }
}

fn ended(task: Task, state: ProbeState, infeasible: Option<InfeasibleReason>) -> Ended {
    Ended {
        spec: spec(task),
        state,
        infeasible,
        peak: None,
    }
}

fn under(task: &Task, memory_bytes: u64, wall_secs: f64) -> ProbeSpec {
    let mut spec = spec(task.clone());
    spec.limits = Limits {
        memory_bytes: Bytes(memory_bytes),
        wall_secs,
    };
    spec
}

#[test]
fn what_a_limit_stopped_says_nothing_about_a_higher_one() {
    const MEMORY: u64 = 1 << 30;
    for task in tasks() {
        let oom = ended(
            task.clone(),
            ProbeState::Infeasible,
            Some(InfeasibleReason::OutOfMemory),
        );
        assert!(answers(&oom, &under(&task, MEMORY, 60.0)));
        assert!(answers(&oom, &under(&task, MEMORY / 2, 60.0)));
        assert!(!answers(&oom, &under(&task, MEMORY + 1, 60.0)));
        let slow = ended(
            task.clone(),
            ProbeState::Infeasible,
            Some(InfeasibleReason::TooSlow),
        );
        assert!(answers(&slow, &under(&task, 2 * MEMORY, 60.0)));
        assert!(!answers(&slow, &under(&task, MEMORY, 61.0)));
        // What was too slow or too large on one device may do on another.
        let mut elsewhere = under(&task, MEMORY, 60.0);
        elsewhere.device.model = "another".into();
        assert!(!answers(&slow, &elsewhere));
        assert!(!answers(&oom, &elsewhere));
        for state in [
            ProbeState::Failed,
            ProbeState::Cancelled,
            ProbeState::Running,
        ] {
            let open = ended(task.clone(), state, None);
            assert!(!answers(&open, &under(&task, MEMORY, 60.0)), "{state:?}");
        }
    }
}

#[test]
fn a_success_under_more_memory_counts_where_its_peak_fits() {
    for task in tasks() {
        let mut succeeded = ended(task.clone(), ProbeState::Succeeded, None);
        let larger = under(&task, 1 << 31, 60.0);
        let smaller = under(&task, 1 << 29, 60.0);
        assert!(answers(&succeeded, &larger));
        let kind = succeeded.spec.kind();
        let is_decided_by_memory = matches!(kind, Smoke | MemoryKind | Confirmation);
        assert_eq!(answers(&succeeded, &smaller), !is_decided_by_memory);
        succeeded.peak = Some(Bytes(1 << 28));
        assert!(answers(&succeeded, &smaller), "{kind:?}");
    }
}

#[test]
fn a_loss_that_left_the_numbers_did_so_for_one_learning_rate() {
    let memory = Task::Memory { steps: 20 };
    let diverged = ended(
        memory.clone(),
        ProbeState::Infeasible,
        Some(InfeasibleReason::Diverged),
    );
    let mut wanted = spec(memory);
    assert!(answers(&diverged, &wanted));
    wanted.optimizer.set(Hyperparameter::LearningRate, 1e-3);
    assert!(is_same(&diverged.spec, &wanted));
    assert!(!answers(&diverged, &wanted));
}
