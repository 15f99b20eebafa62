//! Whether a GPU computes what a processor computes.
//!
//! Nobody else looks: of the kernels for a shape the quickest is taken, and one that a driver translates wrongly, or
//! leaves out, is quick. Such a device trains, and is fast, and every figure of it is worthless.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};

use super::{Session, SessionError, StagedBatch};
use crate::probe::ProbeSpec;
use crate::study::{Bytes, DType, Network, Workload};
use crate::trainer::faults::Faults;
use crate::trainer::network::Net;
use crate::trainer::objective::Objective;

/// Another batch size is another shape, for which other kernels are chosen: so several are looked at.
const GROWTH: usize = 4;
const MOST_EXAMPLES: usize = 256;

/// Numbers that the comparison may hold, of four bytes each, on the device and on the processor: 128 MiB.
const MOST_NUMBERS: u64 = 1 << 25;

/// The share of the study's memory that it may hold: it must never be what runs out.
const SHARE_OF_BUDGET: u64 = 8;

/// For the comparison to last, after which no larger batch is begun.
const ENOUGH: Duration = Duration::from_secs(10);

/// Of the norm of a parameter's gradient. Tensor cores round factors to ten bits and bfloat16 to eight, which
/// moves a gradient by up to a few hundredths; a wrong kernel moves it by its own size.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::Float32 => 0.1,
        DType::Bfloat16 => 0.3,
    }
}

/// A parameter's gradient below this share of the whole one is compared as if it were as large: that of a bias before
/// a normalisation is nothing but rounding.
const LEAST_SHARE: f64 = 0.01;

/// The largest difference between gradients on the device and on the processor, at the spec's batch size and some
/// larger ones, as a share of the gradient's norm; none where the processor's gradients are no numbers.
///
/// # Errors
/// [`SessionError::Unsupported`] when they differ by more than rounding.
pub(in crate::trainer) fn check(spec: &ProbeSpec) -> Result<Option<f64>, SessionError> {
    let mut session = Session::new(spec, Faults::default())?;
    session.model = session.model.take().map(Net::without_dropout);
    let network = spec.workload.network()?;
    let reference = Reference::of(&session, &network, &spec.workload);
    let began = Instant::now();
    let mut largest: f64 = 0.0;
    let most = most_examples(&network, spec.limits.memory_bytes).min(session.training.len());
    let mut examples = session.batch_size.min(most);
    loop {
        let Some(difference) = session.gradient_difference(&reference, examples) else {
            return Ok(None);
        };
        if difference.is_nan() || difference > tolerance(spec.workload.dtype) {
            return Err(SessionError::Unsupported(format!(
                "gradients of {examples} examples on this device differ from those on the processor by {difference:.2} of their norm: its driver or the kernels for it compute wrongly, and nothing measured here would hold; try another driver, or another backend"
            )));
        }
        largest = largest.max(difference);
        examples = examples.saturating_mul(GROWTH);
        if examples > most || began.elapsed() > ENOUGH {
            return Ok(Some(largest));
        }
    }
}

/// Examples of the largest batch that is compared.
fn most_examples(network: &Network, memory: Bytes) -> usize {
    let numbers = MOST_NUMBERS.min(memory.0 / SHARE_OF_BUDGET / 4);
    let of_one = network.largest_activation().saturating_mul(network.depth());
    let fitting = usize::try_from(numbers / of_one.max(1)).unwrap_or(usize::MAX);
    fitting.clamp(1, MOST_EXAMPLES)
}

/// The same network with the same parameters on the processor, in single precision.
struct Reference {
    device: Device,
    model: Net,
    objective: Objective,
}

impl Reference {
    fn of(session: &Session, network: &Network, workload: &Workload) -> Self {
        let device = Device::flex().autodiff();
        let workload = Workload {
            dtype: DType::Float32,
            ..workload.clone()
        };
        let mut parameters = Parameters(VecDeque::new());
        session.model().visit(&mut parameters);
        Self {
            // Not a clone that is moved: clones share their running statistics.
            model: Net::new(network, &device)
                .without_dropout()
                .map(&mut parameters),
            objective: Objective::new(&workload, &device),
            device,
        }
    }

    fn gradients(&self, batch: StagedBatch) -> GradientsParams {
        let prediction = self.model.forward(batch.input);
        let loss = self.objective.training(prediction, batch.targets);
        GradientsParams::from_grads(loss.backward(), &self.model)
    }
}

/// Read from one network, given to another one of the same layers.
struct Parameters(VecDeque<TensorData>);

impl ModuleVisitor for Parameters {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.push_back(param.val().into_data().convert::<f32>());
    }
}

impl ModuleMapper for Parameters {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let is_trained = param.is_require_grad();
        let data = self.0.pop_front().expect(SAME_LAYERS);
        param.map(|tensor| Tensor::from_data(data, &tensor.device()).set_require_grad(is_trained))
    }
}

const SAME_LAYERS: &str = "both networks were built from one description";

impl Session {
    /// The largest over the parameters; none where the processor's own are no numbers.
    fn gradient_difference(&self, reference: &Reference, examples: usize) -> Option<f64> {
        let model = self.model();
        let loss = self.loss(model, self.stage(examples));
        let found = numbers_of(model, &self.backward(model, &loss));
        let expected = reference.gradients(self.stage_on(examples, &reference.device));
        let expected = numbers_of(&reference.model, &expected);
        // Nothing to hold the device to: training itself will tell.
        if !expected.iter().flatten().all(|number| number.is_finite()) {
            return None;
        }
        Some(relative_difference(&found, &expected))
    }
}

/// The largest over the parameters; not a number where one of them is not, or where there is nothing to compare.
fn relative_difference(found: &[Vec<f64>], expected: &[Vec<f64>]) -> f64 {
    let lengths = |of: &[Vec<f64>]| of.iter().map(Vec::len).collect::<Vec<_>>();
    if expected.is_empty() || lengths(found) != lengths(expected) {
        return f64::NAN;
    }
    let whole = norm(expected.iter().flatten().copied());
    found
        .iter()
        .zip(expected)
        .map(|(found, expected)| {
            let difference = norm(found.iter().zip(expected).map(|(a, b)| a - b));
            let size = norm(expected.iter().copied()).max(LEAST_SHARE * whole);
            if difference == 0.0 {
                0.0
            } else {
                difference / size
            }
        })
        // Not f64::max, which leaves out what is not a number.
        .fold(0.0, |largest: f64, one| {
            if largest.is_nan() || one <= largest {
                largest
            } else {
                one
            }
        })
}

/// The gradient of every parameter, in the order of the network.
fn numbers_of(model: &Net, gradients: &GradientsParams) -> Vec<Vec<f64>> {
    struct Numbers<'a> {
        gradients: &'a GradientsParams,
        read: Vec<Vec<f64>>,
    }
    impl ModuleVisitor for Numbers<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                self.read
                    .push(gradient.into_data().convert::<f64>().iter().collect());
            }
        }
    }
    let mut numbers = Numbers {
        gradients,
        read: Vec::new(),
    };
    model.visit(&mut numbers);
    numbers.read
}

fn norm(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.map(|number| number * number).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_parameter_that_is_wrong_or_not_a_number_is_enough_wherever_it_stands() {
        let expected = [vec![3.0, 4.0], vec![0.5], vec![1e-9]];
        assert_eq!(relative_difference(&expected, &expected), 0.0);
        for place in 0..3 {
            let mut found = expected.clone();
            found[place][0] = f64::NAN;
            assert!(relative_difference(&found, &expected).is_nan());
        }
        let zeros = [vec![0.0, 0.0], vec![0.5], vec![1e-9]];
        assert_eq!(relative_difference(&zeros, &expected), 1.0);
        // What is as good as nothing beside the whole is compared with a hundredth of the whole.
        let noise = [vec![3.0, 4.0], vec![0.5], vec![3e-9]];
        assert!(relative_difference(&noise, &expected) < 1e-6);
    }

    #[test]
    fn gradients_that_are_missing_agree_with_nothing() {
        assert!(relative_difference(&[], &[]).is_nan());
        assert!(relative_difference(&[vec![1.0]], &[vec![1.0], vec![2.0]]).is_nan());
        assert!(relative_difference(&[vec![1.0]], &[vec![1.0, 2.0]]).is_nan());
    }
}
