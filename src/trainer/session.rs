//! Training of one workload: the model, its optimizer, the examples and their order.

use std::sync::Arc;

use burn::module::Module;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, FloatDType, IntDType, Tensor, TensorData};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

use super::loader::{LoadTimes, Loader};
use super::network::{Net, Value};
use super::objective::{Evaluation, Evaluator, Objective, Targets};
use super::optimizer;
use crate::datasets::{self, Batch, BatchInputs, BatchOrder, DatasetError, Examples};
use crate::probe::ProbeSpec;
use crate::study::{Backend, DType, GradientClipping, Network, NetworkError, Schedule, Shape};

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
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(String),
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
    validation: Examples,
    /// The validation examples that are evaluated on, always the same.
    validated: Vec<u32>,
    batch_size: usize,
    steps: u64,
    /// The one batch of every step, where it is not the input pipeline that is measured.
    staged: Option<(Value, Targets)>,
}

const MODEL_IS_PRESENT: &str = "the model is put back before a step returns";

/// Draws the fixed subset of validation examples: the same in every probe of every study.
const SUBSET_SEED: u64 = 0;

/// burn's optimizer cannot be printed.
struct Opaque<T>(T);

impl<T> std::fmt::Debug for Opaque<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(std::any::type_name::<T>())
    }
}

impl Session {
    /// Loads the examples and initialises the model, from the spec's seed.
    pub(super) fn new(spec: &ProbeSpec) -> Result<Self, SessionError> {
        let workload = &spec.workload;
        let network = workload.network()?;
        check_addressable(&network, spec.batch_size.0)?;
        let split = datasets::load(&workload.dataset, uploaded_content)?;
        let device = training_device(spec.device.backend, workload.dtype)?;
        device.seed(spec.seed);
        let model = Net::new(&network, &device);
        let batch_size = addressable(spec.batch_size.0, "the batch")?;
        let order = BatchOrder::new(split.training.len(), batch_size, spec.seed);
        Ok(Self {
            model: Some(model),
            optimizer: Opaque(optimizer::init(&spec.optimizer)),
            learning_rate: spec.optimizer.learning_rate(),
            schedule: spec.schedule.clone(),
            clipping: spec.gradient_clipping.clone(),
            objective: Objective::new(workload, &device),
            input: Net::input(&network),
            loader: Loader::new(Arc::new(split.training), order, &workload.input_pipeline)?,
            validated: validated(split.validation.len(), workload.validation_examples),
            validation: split.validation,
            device,
            batch_size,
            steps: 0,
            staged: None,
        })
    }

    /// Takes one batch to the device and trains on it from now on: what a step costs when its data costs
    /// nothing.
    pub(super) fn stage_one_batch(&mut self) -> Result<(), SessionError> {
        let batch = self.loader.next_batch()?;
        self.staged = Some(to_device(batch, self.input, &self.device));
        Ok(())
    }

    /// One optimizer step on the next batch. Returns the training loss, still on the device: reading
    /// it waits for the device.
    pub(super) fn step(&mut self) -> Result<Tensor<1>, SessionError> {
        let (input, targets) = match &self.staged {
            Some((input, targets)) => (input.clone(), targets.clone()),
            None => {
                let batch = self.loader.next_batch()?;
                to_device(batch, self.input, &self.device)
            }
        };
        // The optimizer gets the only reference to the parameters, so that it may update in place.
        let model = self.model.take().expect(MODEL_IS_PRESENT);
        let loss = self.objective.training(model.forward(input), targets);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let gradients = optimizer::clip(&self.clipping, &model, gradients);
        self.steps += 1;
        let learning_rate = self.learning_rate * self.schedule.factor(self.steps);
        let model = self.optimizer.0.step(learning_rate, model, gradients);
        self.model = Some(model);
        Ok(loss)
    }

    fn model(&self) -> &Net {
        self.model.as_ref().expect(MODEL_IS_PRESENT)
    }

    /// Optimizer steps made so far.
    pub(super) fn steps(&self) -> u64 {
        self.steps
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
        self.device
            .sync()
            .map_err(|error| SessionError::Device(error.to_string()))?;
        Ok(finite)
    }

    /// Validates the parameters as they are. Evaluates chunks of at most one training batch, so that
    /// evaluation never needs more memory than training.
    pub(super) fn evaluate(&self) -> Evaluation {
        let model = self.model().valid();
        let device = self.device.clone().inner();
        let mut evaluator = Evaluator::new(&self.objective);
        for chunk in self.validated.chunks(self.batch_size) {
            let (input, targets) = to_device(self.validation.gather(chunk), self.input, &device);
            evaluator.add(model.forward(input), targets);
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
    let mut device = match backend {
        Backend::Cpu => Device::flex(),
    };
    match dtype {
        DType::Float32 => {}
        DType::Bfloat16 => {
            let wanted = (FloatDType::BF16, IntDType::I64);
            // A second session of the same process finds it configured already.
            if device.settings().float_dtype != wanted.0 {
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
