//! A network of burn's layers, built from the placed layers of a [`Network`].

mod batch_norm;
mod build;

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::conv::Conv2d;
use burn::nn::{Dropout, Embedding, GroupNorm, Gru, LayerNorm, Linear, Lstm};
use burn::tensor::activation::{gelu, relu, sigmoid, tanh};
use burn::tensor::module::{attention, avg_pool2d, max_pool2d};
use burn::tensor::ops::{AttentionModuleOptions, AvgPoolOptions, MaxPoolOptions};
use burn::tensor::{Device, Int, Tensor, s};

use crate::study::{Activation, Layer, Network, Placed, Shape};
use batch_norm::BatchNorm;

/// What goes from layer to layer.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// `[batch_size, features]`
    Features(Tensor<2>),
    /// `[batch_size, length, width]`
    Sequence(Tensor<3>),
    /// `[batch_size, channels, height, width]`
    Image(Tensor<4>),
    /// `[batch_size, length]`
    Tokens(Tensor<2, Int>),
}

/// A network with its parameters.
#[derive(Module, Debug)]
pub(super) struct Net {
    layers: Vec<Node>,
}

/// A layer with its parameters. Each step moves every node several times, so what is large is kept in a
/// vector of its own: a small network would spend a part of its step on copying room for an LSTM.
#[derive(Module, Debug)]
enum Node {
    Linear(Linear),
    Conv2d(Conv2d),
    BatchNorm(BatchNorm),
    GroupNorm(GroupNorm),
    LayerNorm(LayerNorm),
    Dropout(Dropout),
    Embedding(Embedding),
    Positions(Positions),
    Patches(Conv2d),
    Attention(Attention),
    /// One.
    Lstm(Vec<Lstm>),
    /// One.
    Gru(Vec<Gru>),
    Residual(Residual),
    Scale(Scale),
    Plain(Plain),
}

/// A vector for each position of a sequence.
#[derive(Module, Debug)]
struct Positions {
    /// `[length, width]`
    weight: Param<Tensor<2>>,
}

/// A factor for each feature.
#[derive(Module, Debug)]
struct Scale {
    /// `[features]`
    weight: Param<Tensor<1>>,
}

/// Multi-head self-attention.
#[derive(Module, Debug)]
struct Attention {
    /// Query, key, value, output.
    projections: Vec<Linear>,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    causal: bool,
}

/// Layers whose result is added to what their input becomes by way of the shortcut.
#[derive(Module, Debug)]
struct Residual {
    layers: Vec<Node>,
    shortcut: Vec<Node>,
}

/// A layer without parameters.
#[derive(Module, Debug)]
struct Plain {
    #[module(skip)]
    operation: Operation,
}

#[derive(Debug, Clone)]
enum Operation {
    Activation(Activation),
    MaxPool {
        kernel: usize,
        stride: usize,
        padding: usize,
    },
    AvgPool {
        kernel: usize,
        stride: usize,
    },
    GlobalAvgPool,
    Flatten,
    Rows,
    MeanOverSequence,
    LastOfSequence,
    Subsample {
        stride: usize,
        channels: usize,
    },
    Unembedding,
}

impl Net {
    /// The network with weights from the device's random source.
    pub(super) fn new(network: &Network, device: &Device) -> Self {
        let layers = match network.layers.as_slice() {
            [first, rest @ ..] if is_flatten(first) => rest,
            all => all,
        };
        Self {
            layers: build::nodes(layers, network.initialisation, device),
        }
    }

    /// The same network, of which no unit is dropped in training.
    pub(super) fn without_dropout(mut self) -> Self {
        self.layers.iter_mut().for_each(Node::drop_nothing);
        self
    }

    /// The shape in which the network takes its examples. One that begins by flattening them takes them
    /// flat: the numbers are the same, and a small step saves an operation and its gradient.
    pub(super) fn input(network: &Network) -> Shape {
        match network.layers.first() {
            Some(first) if is_flatten(first) => first.output,
            _ => network.input,
        }
    }

    /// The prediction for a batch: features, or a sequence for a language model.
    pub(super) fn forward(&self, input: Value) -> Value {
        let embedding = || {
            self.layers.iter().find_map(|node| match node {
                Node::Embedding(embedding) => Some(embedding.weight.val()),
                _ => None,
            })
        };
        through(&self.layers, input, &embedding)
    }

    /// One number of the parameters. The last one belongs to the output, which changes in every step
    /// and turns non-finite with the loss, so reading it makes the device finish the step, and shows a
    /// divergence.
    pub(super) fn one_parameter(&self) -> f32 {
        struct Last(Option<Tensor<1>>);
        impl ModuleVisitor for Last {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                // Running statistics are visited too, but nothing trains them.
                if !param.is_require_grad() {
                    return;
                }
                let tensor = param.val().inner();
                self.0 = Some(
                    tensor
                        .slice(std::array::from_fn::<_, D, _>(|_| 0..1))
                        .reshape([1]),
                );
            }
        }
        let mut last = Last(None);
        self.visit(&mut last);
        match last.0 {
            Some(number) => number.into_scalar::<f32>(),
            // A network without parameters neither trains nor diverges.
            None => 0.0,
        }
    }
}

fn is_flatten(placed: &Placed) -> bool {
    matches!(placed.layer, Layer::Flatten {})
}

/// The weight of the network's embedding, where an unembedding asks for it.
type Tied<'a> = &'a dyn Fn() -> Option<Tensor<2>>;

fn through(layers: &[Node], input: Value, tied: Tied<'_>) -> Value {
    layers
        .iter()
        .fold(input, |value, node| node.forward(value, tied))
}

/// Two layers that do not fit each other: checked before, when the network was put together.
#[track_caller]
fn misplaced(layer: &str, value: &Value) -> ! {
    let kind = match value {
        Value::Features(_) => "features",
        Value::Sequence(_) => "a sequence",
        Value::Image(_) => "an image",
        Value::Tokens(_) => "tokens",
    };
    panic!("{layer} got {kind}; Network::new refuses this")
}

impl Node {
    fn forward(&self, value: Value, tied: Tied<'_>) -> Value {
        match (self, value) {
            (Self::Linear(layer), Value::Features(x)) => Value::Features(layer.forward(x)),
            (Self::Linear(layer), Value::Sequence(x)) => Value::Sequence(layer.forward(x)),
            (Self::Conv2d(layer), Value::Image(x)) => Value::Image(layer.forward(x)),
            (Self::BatchNorm(layer), Value::Features(x)) => Value::Features(layer.forward(x)),
            (Self::BatchNorm(layer), Value::Image(x)) => Value::Image(layer.forward(x)),
            (Self::GroupNorm(layer), Value::Features(x)) => Value::Features(layer.forward(x)),
            (Self::GroupNorm(layer), Value::Image(x)) => Value::Image(layer.forward(x)),
            (Self::LayerNorm(layer), Value::Features(x)) => Value::Features(layer.forward(x)),
            (Self::LayerNorm(layer), Value::Sequence(x)) => Value::Sequence(layer.forward(x)),
            (Self::Dropout(layer), Value::Features(x)) => Value::Features(layer.forward(x)),
            (Self::Dropout(layer), Value::Sequence(x)) => Value::Sequence(layer.forward(x)),
            (Self::Dropout(layer), Value::Image(x)) => Value::Image(layer.forward(x)),
            (Self::Embedding(layer), Value::Tokens(x)) => Value::Sequence(layer.forward(x)),
            (Self::Positions(layer), Value::Sequence(x)) => {
                Value::Sequence(x + layer.weight.val().unsqueeze())
            }
            (Self::Patches(layer), Value::Image(x)) => {
                let patches: Tensor<3> = layer.forward(x).flatten(2, 3);
                Value::Sequence(patches.swap_dims(1, 2))
            }
            (Self::Attention(layer), Value::Sequence(x)) => Value::Sequence(layer.forward(x)),
            (Self::Lstm(layers), Value::Sequence(x)) => {
                Value::Sequence(layers.iter().fold(x, |x, layer| layer.forward(x, None).0))
            }
            (Self::Gru(layers), Value::Sequence(x)) => {
                Value::Sequence(layers.iter().fold(x, |x, layer| layer.forward(x, None)))
            }
            (Self::Residual(block), value) => {
                let inside = through(&block.layers, value.clone(), tied);
                let around = through(&block.shortcut, value, tied);
                match (inside, around) {
                    (Value::Features(a), Value::Features(b)) => Value::Features(a + b),
                    (Value::Sequence(a), Value::Sequence(b)) => Value::Sequence(a + b),
                    (Value::Image(a), Value::Image(b)) => Value::Image(a + b),
                    (_, other) => misplaced("a sum", &other),
                }
            }
            (Self::Scale(layer), Value::Features(x)) => {
                Value::Features(x * layer.weight.val().unsqueeze())
            }
            (Self::Plain(plain), value) => plain.operation.apply(value, tied),
            (node, value) => misplaced(node.name(), &value),
        }
    }

    fn drop_nothing(&mut self) {
        match self {
            Self::Dropout(layer) => layer.prob = 0.0,
            Self::Residual(block) => {
                let inside = block.layers.iter_mut().chain(&mut block.shortcut);
                inside.for_each(Self::drop_nothing);
            }
            _ => {}
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Linear(_) => "linear",
            Self::Conv2d(_) => "conv2d",
            Self::BatchNorm(_) | Self::GroupNorm(_) | Self::LayerNorm(_) => "norm",
            Self::Dropout(_) => "dropout",
            Self::Embedding(_) => "embedding",
            Self::Positions(_) => "position_embedding",
            Self::Patches(_) => "patches",
            Self::Attention(_) => "self_attention",
            Self::Lstm(_) | Self::Gru(_) => "recurrent",
            Self::Residual(_) => "residual",
            Self::Scale(_) => "scale",
            Self::Plain(_) => "a layer without parameters",
        }
    }
}

impl Attention {
    /// # Shapes
    /// `[batch_size, length, width]` → the same
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch_size, length, width] = x.dims();
        let split = |x: Tensor<3>| {
            x.reshape([batch_size, length, self.heads, width / self.heads])
                .swap_dims(1, 2)
        };
        let mixed = attention(
            split(self.projections[0].forward(x.clone())),
            split(self.projections[1].forward(x.clone())),
            split(self.projections[2].forward(x)),
            None,
            None,
            AttentionModuleOptions {
                scale: None,
                softcap: None,
                is_causal: self.causal,
            },
        );
        self.projections[3].forward(mixed.swap_dims(1, 2).reshape([batch_size, length, width]))
    }
}

impl Operation {
    fn apply(&self, value: Value, tied: Tied<'_>) -> Value {
        match (self, value) {
            (Self::Activation(function), Value::Features(x)) => {
                Value::Features(activated(*function, x))
            }
            (Self::Activation(function), Value::Sequence(x)) => {
                Value::Sequence(activated(*function, x))
            }
            (Self::Activation(function), Value::Image(x)) => Value::Image(activated(*function, x)),
            (
                Self::MaxPool {
                    kernel,
                    stride,
                    padding,
                },
                Value::Image(x),
            ) => Value::Image(max_pool2d(
                x,
                MaxPoolOptions::new([*kernel; 2])
                    .with_stride([*stride; 2])
                    .with_padding([*padding; 2]),
            )),
            (Self::AvgPool { kernel, stride }, Value::Image(x)) => Value::Image(avg_pool2d(
                x,
                AvgPoolOptions::new([*kernel; 2]).with_stride([*stride; 2]),
            )),
            (Self::GlobalAvgPool, Value::Image(x)) => {
                let positions: Tensor<3> = x.flatten(2, 3);
                Value::Features(positions.mean_dim(2).squeeze_dim(2))
            }
            (Self::Flatten, Value::Image(x)) => Value::Features(x.flatten(1, 3)),
            (Self::Flatten, Value::Sequence(x)) => Value::Features(x.flatten(1, 2)),
            (Self::Flatten, Value::Features(x)) => Value::Features(x),
            (Self::Rows, Value::Image(x)) => {
                let [batch_size, channels, height, width] = x.dims();
                Value::Sequence(
                    x.swap_dims(1, 2)
                        .reshape([batch_size, height, channels * width]),
                )
            }
            (Self::MeanOverSequence, Value::Sequence(x)) => {
                Value::Features(x.mean_dim(1).squeeze_dim(1))
            }
            (Self::LastOfSequence, Value::Sequence(x)) => {
                let length = x.dims()[1];
                Value::Features(x.narrow(1, length - 1, 1).squeeze_dim(1))
            }
            (Self::Subsample { stride, channels }, Value::Image(x)) => {
                let x = if *stride == 1 {
                    x
                } else {
                    let step = isize::try_from(*stride).unwrap_or(isize::MAX);
                    x.slice(s![.., .., ..;step, ..;step])
                };
                let [batch_size, inputs, height, width] = x.dims();
                if inputs == *channels {
                    return Value::Image(x);
                }
                let zeros =
                    Tensor::zeros([batch_size, channels - inputs, height, width], &x.device());
                Value::Image(Tensor::cat(vec![x, zeros], 1))
            }
            (Self::Unembedding, Value::Sequence(x)) => match tied() {
                Some(weight) => Value::Sequence(x.matmul(weight.transpose().unsqueeze())),
                None => misplaced("unembedding", &Value::Sequence(x)),
            },
            (_, value) => misplaced("a layer without parameters", &value),
        }
    }
}

fn activated<const D: usize>(function: Activation, x: Tensor<D>) -> Tensor<D> {
    match function {
        Activation::Relu => relu(x),
        Activation::Gelu => gelu(x),
        Activation::Tanh => tanh(x),
        Activation::Sigmoid => sigmoid(x),
    }
}

#[cfg(test)]
mod tests;
