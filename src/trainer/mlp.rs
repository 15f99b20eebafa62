//! The multilayer perceptron: linear layers with an activation and dropout between.
//!
//! Initialisation: weights before a ReLU or GELU ~ N(0, 2/fan_in) (He et al. 2015,
//! arXiv:1502.01852, eq. 10); before a saturating activation and in the last layer ~ N(0, 1/fan_in)
//! (LeCun et al. 1998, *Efficient BackProp*, eq. 16); biases 0.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig, Linear};
use burn::tensor::activation::{gelu, relu, sigmoid, tanh};
use burn::tensor::{Device, Distribution, Tensor};

use crate::study::Activation;

/// The sizes of the network.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MlpConfig {
    pub features: usize,
    pub hidden: Vec<usize>,
    pub classes: usize,
    pub activation: Activation,
    pub dropout: f64,
}

/// A multilayer perceptron.
#[derive(Module, Debug)]
pub(super) struct Mlp {
    hidden: Vec<Linear>,
    output: Linear,
    /// Absent when nothing is dropped, so that it costs nothing.
    dropout: Option<Dropout>,
    #[module(skip)]
    activation: Activation,
}

impl MlpConfig {
    /// A network with random weights from the device's seed.
    pub(super) fn init(&self, device: &Device) -> Mlp {
        let hidden_gain = match self.activation {
            Activation::Relu | Activation::Gelu => 2.0,
            Activation::Tanh | Activation::Sigmoid => 1.0,
        };
        let mut inputs = self.features;
        let hidden = self
            .hidden
            .iter()
            .map(|&outputs| {
                let layer = linear(inputs, outputs, hidden_gain, device);
                inputs = outputs;
                layer
            })
            .collect();
        Mlp {
            hidden,
            output: linear(inputs, self.classes, 1.0, device),
            dropout: (self.dropout > 0.0).then(|| DropoutConfig::new(self.dropout).init()),
            activation: self.activation,
        }
    }
}

/// A layer with weights ~ N(0, gain/fan_in), shape `[inputs, outputs]`, and zero biases.
fn linear(inputs: usize, outputs: usize, gain: f64, device: &Device) -> Linear {
    let deviation = (gain / inputs as f64).sqrt();
    Linear {
        weight: Param::from_tensor(Tensor::random(
            [inputs, outputs],
            Distribution::Normal(0.0, deviation),
            device,
        )),
        bias: Some(Param::from_tensor(Tensor::zeros([outputs], device))),
    }
}

impl Mlp {
    /// Logits.
    ///
    /// # Shapes
    /// `[batch_size, features]` → `[batch_size, classes]`
    pub(super) fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        let mut x = features;
        for layer in &self.hidden {
            x = layer.forward(x);
            x = match self.activation {
                Activation::Relu => relu(x),
                Activation::Gelu => gelu(x),
                Activation::Tanh => tanh(x),
                Activation::Sigmoid => sigmoid(x),
            };
            if let Some(dropout) = &self.dropout {
                x = dropout.forward(x);
            }
        }
        self.output.forward(x)
    }

    /// One number of the parameters. The output bias changes in every step and turns non-finite
    /// with the loss, so reading it makes the device finish the step, and shows a divergence.
    pub(super) fn one_parameter(&self) -> f32 {
        match &self.output.bias {
            Some(bias) => bias.val().inner().narrow(0, 0, 1).into_scalar::<f32>(),
            None => f32::NAN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::Model;

    fn config(activation: Activation) -> MlpConfig {
        MlpConfig {
            features: 400,
            hidden: vec![300, 200],
            classes: 10,
            activation,
            dropout: 0.0,
        }
    }

    fn variance(tensor: Tensor<2>) -> f32 {
        tensor.square().mean().into_scalar::<f32>()
    }

    #[test]
    fn weights_have_the_variance_of_their_layer_and_biases_are_zero() {
        let device = Device::flex();
        for (activation, gain) in [
            (Activation::Relu, 2.0),
            (Activation::Gelu, 2.0),
            (Activation::Tanh, 1.0),
            (Activation::Sigmoid, 1.0),
        ] {
            let network = config(activation).init(&device);
            for (layer, expected) in [
                (&network.hidden[0], gain / 400.0),
                (&network.hidden[1], gain / 300.0),
                (&network.output, 1.0 / 200.0),
            ] {
                let measured = variance(layer.weight.val());
                assert!(
                    (measured / expected - 1.0).abs() < 0.15,
                    "{activation:?}: {measured} against {expected}"
                );
                let bias = layer.bias.as_ref().expect("has a bias").val();
                assert_eq!(bias.abs().max().into_scalar::<f32>(), 0.0);
            }
        }
    }

    #[test]
    fn it_has_as_many_parameters_as_the_study_says() {
        let network = config(Activation::Relu).init(&Device::flex());
        let model = Model::Mlp {
            hidden: vec![300, 200],
            activation: Activation::Relu,
            dropout: 0.0,
        };
        assert_eq!(network.num_params() as u64, model.parameters(400, 10));
    }

    #[test]
    fn dropout_acts_in_training_only() {
        let config = MlpConfig {
            dropout: 0.5,
            ..config(Activation::Relu)
        };
        let device = Device::flex().autodiff();
        let network = config.init(&device);
        let input = Tensor::<2>::ones([4, 400], &device);
        let one = network.forward(input.clone()).into_data();
        let two = network.forward(input.clone()).into_data();
        assert_ne!(one, two);

        let network = network.valid();
        let one = network.forward(input.clone().inner()).into_data();
        let two = network.forward(input.inner()).into_data();
        assert_eq!(one, two);
    }
}
