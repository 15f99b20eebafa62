//! Training of one workload: the model, its optimizer, the examples and their order.

use burn::module::Module;
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Int, Tensor, TensorData};
use thiserror::Error;

use super::mlp::{Mlp, MlpConfig};
use super::optimizer;
use crate::datasets::{self, BatchOrder, DatasetError, Examples};
use crate::probe::ProbeSpec;
use crate::study::{Backend, Loss, Model};

/// Why training cannot go on, or not even start.
#[derive(Debug, Error)]
pub(super) enum SessionError {
    /// Larger than any machine's memory: it would not even be a valid request to the allocator.
    #[error("{0} needs more memory than can be addressed")]
    NotAddressable(&'static str),
    /// The examples cannot be had.
    #[error(transparent)]
    Dataset(DatasetError),
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(String),
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
    model: Option<Mlp>,
    optimizer: Opaque<ModuleOptimizer>,
    learning_rate: f64,
    loss: CrossEntropyLoss,
    training: Examples,
    validation: Examples,
    order: BatchOrder,
    batch_size: usize,
    steps: u64,
}

const MODEL_IS_PRESENT: &str = "the model is put back before a step returns";

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
        let config = mlp_config(spec)?;
        let split = datasets::load(&spec.workload.dataset)?;
        let device = training_device(spec.device.backend);
        device.seed(spec.seed);
        let model = config.init(&device);
        let (optimizer, learning_rate) = optimizer::init(&spec.optimizer);
        let loss = match spec.workload.loss {
            Loss::CrossEntropy => CrossEntropyLossConfig::new()
                .with_logits(true)
                .with_pad_tokens(None)
                .with_weights(None)
                .with_smoothing(None)
                .init(&device),
        };
        let batch_size = addressable(spec.batch_size.0, "the batch")?;
        Ok(Self {
            order: BatchOrder::new(split.training.len(), batch_size, spec.seed),
            device,
            model: Some(model),
            optimizer: Opaque(optimizer),
            learning_rate,
            loss,
            training: split.training,
            validation: split.validation,
            batch_size,
            steps: 0,
        })
    }

    /// One optimizer step on the next batch. Returns the training loss, still on the device: reading
    /// it waits for the device.
    pub(super) fn step(&mut self) -> Tensor<1> {
        let (features, labels) = gather(&self.training, self.order.next_batch(), &self.device);
        // The optimizer gets the only reference to the parameters, so that it may update in place.
        let model = self.model.take().expect(MODEL_IS_PRESENT);
        let loss = self.loss.forward(model.forward(features), labels);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let model = self.optimizer.0.step(self.learning_rate, model, gradients);
        self.model = Some(model);
        self.steps += 1;
        loss
    }

    fn model(&self) -> &Mlp {
        self.model.as_ref().expect(MODEL_IS_PRESENT)
    }

    /// Optimizer steps made so far.
    pub(super) fn steps(&self) -> u64 {
        self.steps
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

    /// Mean loss over the validation examples, nats. Evaluates chunks of at most one training batch,
    /// so that evaluation never needs more memory than training.
    pub(super) fn validation_loss(&self) -> f64 {
        let model = self.model().valid();
        let device = self.device.clone().inner();
        let indices: Vec<u32> = (0..).take(self.validation.len()).collect();
        let total: f64 = indices
            .chunks(self.batch_size)
            .map(|chunk| {
                let (features, labels) = gather(&self.validation, chunk, &device);
                let loss = self.loss.forward(model.forward(features), labels);
                f64::from(loss.into_scalar::<f32>()) * chunk.len() as f64
            })
            .sum();
        total / self.validation.len() as f64
    }
}

fn training_device(backend: Backend) -> Device {
    match backend {
        Backend::Cpu => Device::flex().autodiff(),
    }
}

/// The examples at `indices`, copied to the device.
fn gather(examples: &Examples, indices: &[u32], device: &Device) -> (Tensor<2>, Tensor<1, Int>) {
    let mut features = Vec::with_capacity(indices.len() * examples.width);
    let mut labels = Vec::with_capacity(indices.len());
    for &index in indices {
        features.extend_from_slice(examples.row(index as usize));
        labels.push(i64::from(examples.labels[index as usize]));
    }
    let count = indices.len();
    (
        Tensor::from_data(TensorData::new(features, [count, examples.width]), device),
        Tensor::from_data(TensorData::new(labels, [count]), device),
    )
}

/// The network's sizes, checked: every tensor of a step must be a size that can be asked for, so
/// that a lack of memory is met by the allocator and not by an overflow on the way to it.
fn mlp_config(spec: &ProbeSpec) -> Result<MlpConfig, SessionError> {
    let Model::Mlp {
        hidden,
        activation,
        dropout,
    } = &spec.workload.model;
    let features = spec.workload.dataset.features();
    let classes = spec.workload.dataset.classes();
    let mut inputs = features;
    addressable(spec.batch_size.0.saturating_mul(features), "the batch")?;
    for &outputs in hidden.iter().chain(std::iter::once(&classes)) {
        addressable(inputs.saturating_mul(outputs), "a layer's weights")?;
        let activations = spec.batch_size.0.saturating_mul(outputs);
        addressable(activations, "a layer's activations")?;
        inputs = outputs;
    }
    Ok(MlpConfig {
        features: addressable(features, "an example")?,
        hidden: hidden
            .iter()
            .map(|&units| addressable(units, "a layer"))
            .collect::<Result<_, _>>()?,
        classes: addressable(classes, "the output layer")?,
        activation: *activation,
        dropout: *dropout,
    })
}

/// A count of numbers of at most eight bytes, if a buffer of them can be asked for.
fn addressable(numbers: u64, what: &'static str) -> Result<usize, SessionError> {
    let bytes = numbers
        .checked_mul(8)
        .ok_or(SessionError::NotAddressable(what))?;
    isize::try_from(bytes).map_err(|_| SessionError::NotAddressable(what))?;
    usize::try_from(numbers).map_err(|_| SessionError::NotAddressable(what))
}
