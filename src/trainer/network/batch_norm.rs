//! Batch normalization, over the whole batch or over ghost batches.
//!
//! A batch of B examples is split into ⌊B/v⌋ ghost batches of v examples: example i belongs to ghost
//! batch i mod ⌊B/v⌋, which costs nothing but a reshape, and says nothing about an example because their
//! order is random. B mod v examples that are left over, the last ones, form a smaller ghost batch. With
//! v ≥ B there is one ghost batch: ordinary batch normalization.
//!
//! Each ghost batch is normalised with its own mean and its own (biased) variance. The running
//! statistics, which evaluation uses, are exponential moving averages: of the mean of the ghost batches'
//! means, and of the mean of their *unbiased* variances, each weighted with its number of examples (Hoffer
//! et al. 2017, arXiv:1705.08741, algorithm 1; Ioffe & Szegedy 2015, algorithm 2). A single step moves them
//! by `momentum`, however many ghost batches it has.

use burn::module::{Module, Param, RunningState};
use burn::tensor::module::{batch_norm, batch_norm_train};
use burn::tensor::{Device, Tensor};

/// Normalises `[batch_size, channels, ...]` over all axes but the channels.
#[derive(Module, Debug)]
pub(super) struct BatchNorm {
    gamma: Param<Tensor<1>>,
    beta: Param<Tensor<1>>,
    running_mean: RunningState<Tensor<1>>,
    running_variance: RunningState<Tensor<1>>,
    /// Examples of a ghost batch; `usize::MAX` for the whole batch.
    #[module(skip)]
    ghost_batch_size: usize,
    #[module(skip)]
    momentum: f64,
    #[module(skip)]
    epsilon: f64,
}

/// Mean and unbiased variance of each channel, over one ghost batch or averaged over several.
struct Statistics {
    mean: Tensor<1>,
    variance: Tensor<1>,
}

impl BatchNorm {
    pub(super) fn new(
        channels: usize,
        ghost_batch_size: Option<usize>,
        momentum: f64,
        epsilon: f64,
        device: &Device,
    ) -> Self {
        Self {
            gamma: Param::from_tensor(Tensor::ones([channels], device)),
            beta: Param::from_tensor(Tensor::zeros([channels], device)),
            running_mean: RunningState::new(Tensor::zeros([channels], device)),
            running_variance: RunningState::new(Tensor::ones([channels], device)),
            ghost_batch_size: ghost_batch_size.unwrap_or(usize::MAX),
            momentum,
            epsilon,
        }
    }

    /// Normalises with the statistics of the batch where gradients are taken, else with the running ones.
    ///
    /// # Shapes
    /// `[batch_size, channels, ...]` → the same
    pub(super) fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        if !input.device().is_autodiff() {
            return batch_norm(
                input,
                self.gamma.val(),
                self.beta.val(),
                self.running_mean.value(),
                self.running_variance.value(),
                self.epsilon,
            );
        }
        let batch_size = input.dims()[0];
        let ghosts = (batch_size / self.ghost_batch_size).max(1);
        let together = if batch_size < self.ghost_batch_size {
            batch_size
        } else {
            ghosts * self.ghost_batch_size
        };
        let (output, statistics) = if together == batch_size {
            self.normalise(input, ghosts)
        } else {
            let left = batch_size - together;
            let (first, of_first) = self.normalise(input.clone().narrow(0, 0, together), ghosts);
            let (last, of_last) = self.normalise(input.narrow(0, together, left), 1);
            let weighted = |first: Tensor<1>, last: Tensor<1>| {
                let share = left as f64 / batch_size as f64;
                first * (1.0 - share) + last * share
            };
            (
                Tensor::cat(vec![first, last], 0),
                Statistics {
                    mean: weighted(of_first.mean, of_last.mean),
                    variance: weighted(of_first.variance, of_last.variance),
                },
            )
        };
        let moved = |running: &RunningState<Tensor<1>>, new: Tensor<1>| {
            let old = running.value_sync();
            running.update((old * (1.0 - self.momentum) + new * self.momentum).detach());
        };
        moved(&self.running_mean, statistics.mean);
        moved(&self.running_variance, statistics.variance);
        output
    }

    /// Normalises equally large ghost batches.
    fn normalise<const D: usize>(
        &self,
        input: Tensor<D>,
        ghosts: usize,
    ) -> (Tensor<D>, Statistics) {
        let dims = input.dims();
        let (examples, channels) = (dims[0], dims[1]);
        // Each ghost batch gets channels of its own: [examples, channels] → [examples/ghosts, ghosts·channels].
        let mut folded = dims;
        folded[0] = examples / ghosts;
        folded[1] = ghosts * channels;
        let numbers = folded[0] * dims[2..].iter().product::<usize>();
        let (gamma, beta) = if ghosts == 1 {
            (self.gamma.val(), self.beta.val())
        } else {
            (
                self.gamma.val().repeat_dim(0, ghosts),
                self.beta.val().repeat_dim(0, ghosts),
            )
        };
        let result = batch_norm_train(input.reshape(folded), gamma, beta, self.epsilon);
        // One number has no variance; its unbiased estimate would be 0/0.
        let unbiased = numbers as f64 / (numbers.max(2) - 1) as f64;
        let over_ghosts = |of_each: Tensor<1>| {
            of_each
                .detach()
                .reshape([ghosts, channels])
                .mean_dim(0)
                .reshape([channels])
        };
        (
            result.output.reshape(dims),
            Statistics {
                mean: over_ghosts(result.mean),
                variance: over_ghosts(result.variance) * unbiased,
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::BatchNormConfig;
    use burn::tensor::Distribution;

    use super::*;

    const EPSILON: f64 = 1e-5;
    const MOMENTUM: f64 = 0.3;

    fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
        let values: Vec<f32> = tensor.into_data().try_to_vec().expect("is f32");
        values.into_iter().map(f64::from).collect()
    }

    #[track_caller]
    fn assert_close(one: &[f64], two: &[f64]) {
        assert_eq!(one.len(), two.len());
        for (one, two) in one.iter().zip(two) {
            assert!((one - two).abs() < 2e-5, "{one} against {two}");
        }
    }

    fn layer(channels: usize, ghost: Option<usize>, device: &Device) -> BatchNorm {
        let layer = BatchNorm::new(channels, ghost, MOMENTUM, EPSILON, device);
        let random = || Tensor::random([channels], Distribution::Normal(1.0, 0.5), device);
        BatchNorm {
            gamma: Param::from_tensor(random()),
            beta: Param::from_tensor(random()),
            ..layer
        }
    }

    /// The same in double precision, straight from the definition: output, running mean, running variance.
    fn directly(
        input: &[f64],
        [batch, channels, positions]: [usize; 3],
        (gamma, beta): (&[f64], &[f64]),
        ghost: usize,
    ) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let ghosts = (batch / ghost).max(1);
        let together = if batch < ghost { batch } else { ghosts * ghost };
        let group_of = |example: usize| {
            if example < together {
                example % ghosts
            } else {
                ghosts
            }
        };
        let groups = if together == batch {
            ghosts
        } else {
            ghosts + 1
        };
        let at = |example: usize, channel: usize, position: usize| {
            (example * channels + channel) * positions + position
        };
        let mut output = vec![0.0; input.len()];
        let (mut running_mean, mut running_variance) = (vec![0.0; channels], vec![1.0; channels]);
        for channel in 0..channels {
            let (mut mean_of_means, mut mean_of_variances) = (0.0, 0.0);
            for group in 0..groups {
                let members: Vec<usize> = (0..batch)
                    .filter(|&example| group_of(example) == group)
                    .collect();
                let values: Vec<f64> = members
                    .iter()
                    .flat_map(|&example| (0..positions).map(move |position| (example, position)))
                    .map(|(example, position)| input[at(example, channel, position)])
                    .collect();
                let count = values.len() as f64;
                let mean = values.iter().sum::<f64>() / count;
                let squares = values
                    .iter()
                    .map(|value| (value - mean).powi(2))
                    .sum::<f64>();
                for &example in &members {
                    for position in 0..positions {
                        let place = at(example, channel, position);
                        output[place] = gamma[channel] * (input[place] - mean)
                            / (squares / count + EPSILON).sqrt()
                            + beta[channel];
                    }
                }
                let share = members.len() as f64 / batch as f64;
                mean_of_means += share * mean;
                mean_of_variances += share * squares / (count - 1.0);
            }
            running_mean[channel] = MOMENTUM * mean_of_means;
            running_variance[channel] = 1.0 - MOMENTUM + MOMENTUM * mean_of_variances;
        }
        (output, running_mean, running_variance)
    }

    #[test]
    fn ghost_batches_are_normalised_as_a_direct_computation_says() {
        let device = Device::flex().autodiff();
        for (batch, ghost) in [(12, 4), (12, 12), (12, 5), (13, 4), (6, 9), (8, 2)] {
            let input =
                Tensor::<4>::random([batch, 3, 2, 5], Distribution::Normal(2.0, 3.0), &device);
            let layer = layer(3, Some(ghost), &device);
            let output = layer.forward(input.clone());
            let (expected, mean, variance) = directly(
                &numbers(input.clone()),
                [batch, 3, 10],
                (&numbers(layer.gamma.val()), &numbers(layer.beta.val())),
                ghost,
            );
            assert_close(&numbers(output), &expected);
            assert_close(&numbers(layer.running_mean.value_sync()), &mean);
            assert_close(&numbers(layer.running_variance.value_sync()), &variance);
        }
    }

    #[test]
    fn one_ghost_batch_is_ordinary_batch_normalization_gradients_included() {
        let device = Device::flex().autodiff();
        let input = Tensor::<2>::random([16, 4], Distribution::Normal(-1.0, 2.0), &device);
        let weights = Tensor::<2>::random([16, 4], Distribution::Normal(0.0, 1.0), &device);
        let ordinary = BatchNormConfig::new(4)
            .with_epsilon(EPSILON)
            .with_momentum(MOMENTUM)
            .init(&device);
        let gradient = |forward: &dyn Fn(Tensor<2>) -> Tensor<2>| {
            let input = input.clone().require_grad();
            let output = forward(input.clone());
            let gradients = (output.clone() * weights.clone()).sum().backward();
            (
                numbers(output),
                numbers(input.grad(&gradients).expect("has a gradient")),
            )
        };
        let expected = gradient(&|x| ordinary.forward(x));
        for ghost in [None, Some(16), Some(100)] {
            let layer = BatchNorm::new(4, ghost, MOMENTUM, EPSILON, &device);
            let found = gradient(&|x| layer.forward(x));
            assert_close(&found.0, &expected.0);
            assert_close(&found.1, &expected.1);
        }
    }

    #[test]
    fn evaluation_uses_the_running_statistics() {
        let device = Device::flex().autodiff();
        let layer = layer(2, Some(4), &device);
        let batch = Tensor::<2>::random([8, 2], Distribution::Normal(5.0, 2.0), &device);
        layer.forward(batch);
        let snapshot = layer.clone().valid();
        let input = Tensor::<2>::from_floats([[1.0, 2.0], [30.0, -4.0]], &Device::flex());
        let output = numbers(snapshot.forward(input.clone()));
        let (mean, variance) = (
            numbers(layer.running_mean.value_sync()),
            numbers(layer.running_variance.value_sync()),
        );
        let (gamma, beta) = (numbers(layer.gamma.val()), numbers(layer.beta.val()));
        let expected: Vec<f64> = numbers(input)
            .iter()
            .enumerate()
            .map(|(place, value)| {
                let channel = place % 2;
                gamma[channel] * (value - mean[channel]) / (variance[channel] + EPSILON).sqrt()
                    + beta[channel]
            })
            .collect();
        assert_close(&output, &expected);
    }
}
