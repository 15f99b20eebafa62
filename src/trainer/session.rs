//! Training of one workload: the model, its optimizer, the examples and their order.

pub(super) mod agreement;

use std::sync::Arc;

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{DType as TensorDType, Device, FloatDType, Tensor, TensorData};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

use super::faults::Faults;
use super::gpu;
use super::loader::{LoadTimes, Loader};
use super::memory;
use super::network::{Net, Value};
use super::objective::{Evaluation, Evaluator, Objective, Targets};
use super::optimizer;
use super::pool_memory::{PoolMemory, PoolPeak};
use crate::datasets::{self, Batch, BatchInputs, BatchOrder, DatasetError, Examples};
use crate::probe::{ProbeSpec, Task};
use crate::study::{
    Backend, Bytes, DType, GradientClipping, InputPipeline, Network, NetworkError, Schedule, Shape,
};

/// Why training cannot go on, or not even start.
#[derive(Debug, Error)]
pub(super) enum SessionError {
    /// Larger than any machine's memory: it would not even be a valid request to the allocator.
    #[error("{0} needs more memory than can be addressed")]
    NotAddressable(&'static str),
    /// The examples cannot be had.
    #[error(transparent)]
    Dataset(DatasetError),
    /// The model does not fit the data set.
    #[error("the network cannot be built: {0}")]
    Network(#[from] NetworkError),
    /// The device cannot do it, here or at all.
    #[error("{0}")]
    Unsupported(String),
    /// The device's pool has grown beyond the memory budget.
    #[error(
        "the device's pool has reserved {} bytes, and the memory budget is {} bytes", reserved.0, budget.0
    )]
    OverBudget {
        /// By the pool.
        reserved: Bytes,
        /// Of the study.
        budget: Bytes,
    },
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(String),
    /// Only a sample of this training can be had, not its expectation.
    #[error(
        "the expected loss is known of the noisy quadratic under sgd and sgd_momentum without gradient clipping only"
    )]
    NoExpectation,
    /// The input pipeline failed.
    #[error("the input pipeline failed: {0}")]
    Loader(#[from] std::io::Error),
}

impl From<DatasetError> for SessionError {
    fn from(error: DatasetError) -> Self {
        match error {
            DatasetError::TooLarge => Self::NotAddressable("the data set"),
            other => Self::Dataset(other),
        }
    }
}

/// Training of one workload at one batch size.
#[derive(Debug)]
pub(super) struct Session {
    device: Device,
    /// Absent only inside [`step`](Self::step).
    model: Option<Net>,
    optimizer: Opaque<ModuleOptimizer>,
    learning_rate: f64,
    schedule: Schedule,
    clipping: GradientClipping,
    objective: Objective,
    input: Shape,
    loader: Loader,
    training: Arc<Examples>,
    validation: Examples,
    /// The validation examples that are evaluated on, always the same.
    validated: Vec<u32>,
    batch_size: usize,
    seed: u64,
    steps: u64,
    reads_loss_every_step: bool,
    /// Layers, each of which is launched.
    layers: u32,
    faults: Faults,
    loaded: LoadedBytes,
    backend: Backend,
    /// Of a GPU.
    pool: Option<PoolMemory>,
    /// Whether the pool is looked at within steps.
    watches_pool: bool,
}

/// A batch on the device.
#[derive(Debug, Clone)]
pub(super) struct StagedBatch {
    input: Value,
    targets: Targets,
}

/// What loading allocated, where memory was watched meanwhile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LoadedBytes {
    /// By the data set.
    pub dataset: i64,
    /// By the model's parameters.
    pub parameters: i64,
}

const MODEL_IS_PRESENT: &str = "the model is put back before a step returns";

/// Draws the fixed subset of validation examples: the same in every probe of every study.
const SUBSET_SEED: u64 = 0;
/// Keeps the order of a control's targets apart from what else the seed draws.
const SHUFFLE_SEED: u64 = 0x5f0f_f1e5;

/// burn's optimizer cannot be printed.
struct Opaque<T>(T);

impl<T> std::fmt::Debug for Opaque<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(std::any::type_name::<T>())
    }
}

impl Session {
    /// Loads the examples and initialises the model, from the spec's seed.
    pub(super) fn new(spec: &ProbeSpec, faults: Faults) -> Result<Self, SessionError> {
        let workload = &spec.workload;
        let network = workload.network()?;
        check_addressable(&network, spec.batch_size.0)?;
        let before = memory::in_use();
        let mut split = datasets::load(&workload.dataset, uploaded_content)?;
        if matches!(&spec.task, Task::Training(run) if run.shuffles_targets) {
            split.training.shuffle_targets(spec.seed ^ SHUFFLE_SEED);
        }
        let with_dataset = memory::in_use();
        let device = training_device(spec.device.backend, workload.dtype)?;
        device.seed(spec.seed);
        let mut pool = PoolMemory::of(&device.clone().inner(), spec.limits.memory_bytes);
        let model = Net::new(&network, &device);
        let loaded = match &mut pool {
            None => LoadedBytes {
                dataset: with_dataset - before,
                parameters: memory::in_use() - with_dataset,
            },
            // The data set stays with the host.
            Some(pool) => LoadedBytes {
                dataset: 0,
                parameters: i64::try_from(pool.look()).unwrap_or(i64::MAX),
            },
        };
        let training = Arc::new(split.training);
        let batch_size = addressable(spec.batch_size.0, "the batch")?;
        let order = BatchOrder::new(training.len(), batch_size, spec.seed);
        Ok(Self {
            model: Some(model),
            optimizer: Opaque(optimizer::init(&spec.optimizer)),
            learning_rate: spec.optimizer.learning_rate(),
            schedule: spec.schedule.clone(),
            clipping: spec.gradient_clipping.clone(),
            objective: Objective::new(workload, &device),
            input: Net::input(&network),
            loader: Loader::new(
                Arc::clone(&training),
                order,
                &workload.input_pipeline,
                faults.load,
            )?,
            training,
            validated: validated(split.validation.len(), workload.validation_examples),
            validation: split.validation,
            device,
            batch_size,
            seed: spec.seed,
            steps: 0,
            reads_loss_every_step: workload.read_loss_every_step,
            layers: u32::try_from(network.depth()).unwrap_or(u32::MAX),
            faults,
            loaded,
            backend: spec.device.backend,
            pool,
            watches_pool: matches!(spec.task, Task::Memory { .. } | Task::Confirmation { .. }),
        })
    }

    /// A batch of so many examples on the device: what a step on it costs is without its input pipeline.
    pub(super) fn stage(&self, examples: usize) -> StagedBatch {
        self.stage_on(examples, &self.device)
    }

    /// The same batch on another device.
    fn stage_on(&self, examples: usize, device: &Device) -> StagedBatch {
        let mut order = BatchOrder::new(self.training.len(), examples, self.seed);
        let batch = self.training.gather(order.next_batch());
        let (input, targets) = to_device(batch, self.input, device);
        StagedBatch { input, targets }
    }

    /// A batch of this session's size on the device.
    pub(super) fn stage_one_batch(&self) -> StagedBatch {
        self.stage(self.batch_size)
    }

    /// Copies a gathered batch to the device.
    pub(super) fn to_device(&self, batch: Batch) -> StagedBatch {
        let (input, targets) = to_device(batch, self.input, &self.device);
        StagedBatch { input, targets }
    }

    /// Another input pipeline over the same examples in the same order, from their beginning.
    pub(super) fn open_loader(&self, pipeline: &InputPipeline) -> Result<Loader, SessionError> {
        let order = BatchOrder::new(self.training.len(), self.batch_size, self.seed);
        let examples = Arc::clone(&self.training);
        Ok(Loader::new(examples, order, pipeline, self.faults.load)?)
    }

    /// One optimizer step on the next batch, as the study trains. Returns the training loss, still on
    /// the device: reading it waits for the device.
    pub(super) fn step(&mut self) -> Result<Tensor<1>, SessionError> {
        let batch = self.loader.next_batch()?;
        let loss = self.step_on(self.to_device(batch));
        if self.reads_loss_every_step {
            self.read_back(loss.clone());
        }
        Ok(loss)
    }

    /// One optimizer step on the next batch of another input pipeline. The loss is not read.
    pub(super) fn step_from(&mut self, loader: &mut Loader) -> Result<Tensor<1>, SessionError> {
        let batch = loader.next_batch()?;
        Ok(self.step_on(self.to_device(batch)))
    }

    /// One optimizer step on a batch. The loss is not read.
    pub(super) fn step_on(&mut self, batch: StagedBatch) -> Tensor<1> {
        // The optimizer gets the only reference to the parameters, so that it may update in place.
        let model = self.model.take().expect(MODEL_IS_PRESENT);
        let loss = self.loss(&model, batch);
        // Between the passes every activation is held.
        self.look_at_pool();
        let gradients = self.backward(&model, &loss);
        self.update(model, gradients);
        loss
    }

    /// The forward pass and the loss.
    pub(super) fn forward(&self, batch: StagedBatch) -> Tensor<1> {
        self.loss(self.model(), batch)
    }

    /// The backward pass; the gradients are dropped.
    pub(super) fn backward_of(&self, loss: &Tensor<1>) {
        drop(self.backward(self.model(), loss));
    }

    /// One optimizer step on the gradients of `micro_batches` batches, added up.
    pub(super) fn accumulated_step(&mut self, batch: &StagedBatch, micro_batches: u64) {
        let model = self.model.take().expect(MODEL_IS_PRESENT);
        let mut accumulator = GradientsAccumulator::new();
        for _ in 0..micro_batches {
            let loss = self.loss(&model, batch.clone()) / micro_batches as f64;
            accumulator.accumulate(&model, self.backward(&model, &loss));
        }
        self.update(model, accumulator.grads());
    }

    fn loss(&self, model: &Net, batch: StagedBatch) -> Tensor<1> {
        self.faults.launch(self.layers);
        self.objective
            .training(model.forward(batch.input), batch.targets)
    }

    fn backward(&self, model: &Net, loss: &Tensor<1>) -> GradientsParams {
        self.faults.launch(self.layers.saturating_mul(2));
        GradientsParams::from_grads(loss.backward(), model)
    }

    fn update(&mut self, model: Net, gradients: GradientsParams) {
        self.faults.launch(self.layers);
        let gradients = optimizer::clip(&self.clipping, &model, gradients);
        self.steps += 1;
        let learning_rate = self.learning_rate * self.schedule.factor(self.steps);
        self.model = Some(self.optimizer.0.step(learning_rate, model, gradients));
    }

    /// Waits for a loss.
    pub(super) fn read_back(&self, loss: Tensor<1>) -> f64 {
        self.faults.read_back();
        f64::from(loss.into_scalar::<f32>())
    }

    fn look_at_pool(&mut self) {
        if self.watches_pool
            && let Some(pool) = &mut self.pool
        {
            pool.look();
        }
    }

    /// Says so when a GPU's pool has grown beyond the memory budget. On the CPU the kernel holds the limit.
    pub(super) fn check_memory(&mut self) -> Result<(), SessionError> {
        self.pool.as_mut().map_or(Ok(()), PoolMemory::check)
    }

    /// Memory in use now beyond what was held at `before`, bytes: of the GPU's pool, where there is one, else of
    /// the process.
    pub(super) fn memory_in_use(&mut self, before: i64) -> i64 {
        match &mut self.pool {
            Some(pool) => i64::try_from(pool.look()).unwrap_or(i64::MAX),
            None => memory::in_use() - before,
        }
    }

    /// Peaks of the GPU's pool, where there is one.
    pub(super) fn pool_peak(&self) -> Option<PoolPeak> {
        self.pool.as_ref().map(PoolMemory::peak)
    }

    /// What loading the examples and the model allocated.
    pub(super) fn loaded_bytes(&self) -> LoadedBytes {
        self.loaded
    }

    /// What runs the arithmetic.
    pub(super) fn backend(&self) -> Backend {
        self.backend
    }

    /// The device that training runs on, without gradients.
    pub(super) fn plain_device(&self) -> Device {
        self.device.clone().inner()
    }

    /// Waits until the device has finished everything.
    pub(super) fn synchronise(&self) -> Result<(), SessionError> {
        self.device
            .sync()
            .map_err(|error| SessionError::Device(error.to_string()))
    }

    fn model(&self) -> &Net {
        self.model.as_ref().expect(MODEL_IS_PRESENT)
    }

    /// Optimizer steps made so far.
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    /// Changes the learning rate of the steps to come.
    pub(super) fn set_learning_rate(&mut self, learning_rate: f64) {
        self.learning_rate = learning_rate;
    }

    /// Validation loss of the best predictor that does not look at its input.
    pub(super) fn chance_loss(&self) -> Option<f64> {
        datasets::chance_loss(&self.training, &self.validation, &self.validated)
    }

    /// Validation loss of every example under that predictor.
    pub(super) fn chance_losses(&self) -> Option<Vec<f64>> {
        datasets::chance_losses(&self.training, &self.validation, &self.validated)
    }

    /// Training examples.
    pub(super) fn training_examples(&self) -> usize {
        self.training.len()
    }

    /// Mean squared norm of the gradients of small batches, and the squared norm of their mean, at the
    /// parameters as they are. Each of `batches` is the examples of a small one.
    pub(super) fn gradient_squares<'a>(
        &self,
        batches: impl ExactSizeIterator<Item = &'a [u32]>,
    ) -> (f64, f64) {
        let model = self.model();
        let count = batches.len() as f64;
        let mut accumulator = GradientsAccumulator::new();
        let mut small = 0.0;
        for examples in batches {
            let loss = self.loss(model, self.to_device(self.training.gather(examples)));
            let gradients = self.backward(model, &loss);
            small += optimizer::square_norm(model, &gradients);
            accumulator.accumulate(model, gradients);
        }
        // The accumulator adds up: the norm of the mean is that of the sum over the count.
        let sum = optimizer::square_norm(model, &accumulator.grads());
        (small / count, sum / (count * count))
    }

    /// What loading took so far.
    pub(super) fn load_times(&self) -> LoadTimes {
        self.loader.times()
    }

    /// Waits until the device has finished every step, and says whether the parameters are still
    /// finite. A failed launch surfaces when a buffer that it touched is read, not when the device
    /// is synchronised: so one number of the updated parameters is read, and then it is synchronised.
    pub(super) fn finish_steps(&self) -> Result<bool, SessionError> {
        let finite = self.model().one_parameter().is_finite();
        self.synchronise()?;
        Ok(finite)
    }

    /// Validates the parameters as they are. Evaluates chunks of at most one training batch, so that
    /// evaluation never needs more memory than training.
    pub(super) fn evaluate(&self) -> Evaluation {
        self.validate(Evaluator::new(&self.objective)).0
    }

    /// The same, and the loss of every example.
    pub(super) fn evaluate_examples(&self) -> (Evaluation, Vec<f64>) {
        self.validate(Evaluator::of_examples(&self.objective))
    }

    fn validate(&self, mut evaluator: Evaluator<'_>) -> (Evaluation, Vec<f64>) {
        let model = self.model().valid();
        let device = self.plain_device();
        for chunk in self.validated.chunks(self.batch_size) {
            let (input, targets) = to_device(self.validation.gather(chunk), self.input, &device);
            evaluator.add(model.forward(input), targets, chunk.len());
        }
        evaluator.finish()
    }
}

/// The stored content of an uploaded data set: the worker has opened it and passed it on, so that this
/// process needs no way to it.
fn uploaded_content() -> std::io::Result<std::fs::File> {
    use std::os::fd::{FromRawFd, RawFd};
    const DATASET_FD: RawFd = 4;
    // SAFETY: duplicates a descriptor, open or not.
    let copy = unsafe { nix::libc::fcntl(DATASET_FD, nix::libc::F_DUPFD_CLOEXEC, DATASET_FD) };
    if copy < 0 {
        return Err(std::io::Error::other(
            "the data set's content was not passed on (descriptor 4)",
        ));
    }
    // SAFETY: made just now, and nobody else knows it.
    Ok(unsafe { std::fs::File::from_raw_fd(copy) })
}

/// The first `count` of a fixed shuffle, in ascending order; all without a count.
fn validated(examples: usize, count: Option<u64>) -> Vec<u32> {
    let mut indices: Vec<u32> = (0..).take(examples).collect();
    if let Some(count) = count.and_then(|count| usize::try_from(count).ok())
        && count < examples
    {
        indices.shuffle(&mut ChaCha8Rng::seed_from_u64(SUBSET_SEED));
        indices.truncate(count);
        indices.sort_unstable();
    }
    indices
}

fn training_device(backend: Backend, dtype: DType) -> Result<Device, SessionError> {
    let mut device = gpu::open(backend)?;
    match dtype {
        DType::Float32 => {}
        DType::Bfloat16 => {
            let wanted = FloatDType::BF16;
            if !device.supports_dtype(TensorDType::BF16) {
                return Err(SessionError::Unsupported(format!(
                    "this {} device cannot compute in bfloat16",
                    backend.as_str()
                )));
            }
            // A second session of the same process finds it configured already.
            if device.settings().float_dtype != wanted {
                device
                    .configure(wanted)
                    .map_err(|error| SessionError::Device(format!("{error:?}")))?;
            }
        }
    }
    Ok(device.autodiff())
}

/// A batch, copied to the device.
fn to_device(batch: Batch, input: Shape, device: &Device) -> (Value, Targets) {
    let examples = batch.examples;
    let targets = Targets::to_device(batch.targets, examples, device);
    (
        inputs_to_device(batch.inputs, examples, input, device),
        targets,
    )
}

fn inputs_to_device(inputs: BatchInputs, examples: usize, input: Shape, device: &Device) -> Value {
    // A shape that a batch of exists fits this machine's integers.
    let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    match inputs {
        BatchInputs::Numbers(values) => match input {
            Shape::Features { width } => Value::Features(Tensor::from_data(
                TensorData::new(values, [examples, size(width)]),
                device,
            )),
            Shape::Sequence { length, width } => Value::Sequence(Tensor::from_data(
                TensorData::new(values, [examples, size(length), size(width)]),
                device,
            )),
            Shape::Image {
                channels,
                height,
                width,
            } => Value::Image(Tensor::from_data(
                TensorData::new(
                    values,
                    [examples, size(channels), size(height), size(width)],
                ),
                device,
            )),
            Shape::Tokens { .. } => {
                unreachable!("the data set's facts: tokens are not numbers")
            }
        },
        BatchInputs::Tokens(tokens) => {
            let length = tokens.len() / examples.max(1);
            Value::Tokens(Tensor::from_data(
                TensorData::new(tokens, [examples, length]),
                device,
            ))
        }
    }
}

/// Every tensor of a step must be a size that can be asked for, so that a lack of memory is met by the
/// allocator and not by an overflow on the way to it.
fn check_addressable(network: &Network, batch_size: u64) -> Result<(), SessionError> {
    addressable(network.largest_parameters(), "a layer's weights")?;
    addressable(
        batch_size.saturating_mul(network.input.numbers()),
        "the batch",
    )?;
    addressable(
        batch_size.saturating_mul(network.largest_activation()),
        "a layer's activations",
    )?;
    Ok(())
}

/// A count of numbers of at most eight bytes, if a buffer of them can be asked for.
fn addressable(numbers: u64, what: &'static str) -> Result<usize, SessionError> {
    let bytes = numbers
        .checked_mul(8)
        .ok_or(SessionError::NotAddressable(what))?;
    isize::try_from(bytes).map_err(|_| SessionError::NotAddressable(what))?;
    usize::try_from(numbers).map_err(|_| SessionError::NotAddressable(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_validation_subset_is_fixed_and_has_no_example_twice() {
        let subset = validated(1000, Some(100));
        assert_eq!(subset, validated(1000, Some(100)));
        assert_eq!(subset.len(), 100);
        assert!(subset.is_sorted_by(|a, b| a < b));
        assert!(subset.iter().any(|&index| index >= 500));
        assert_eq!(validated(7, None), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(validated(3, Some(3)), [0, 1, 2]);
    }
}
