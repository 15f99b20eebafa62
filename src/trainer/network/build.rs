//! From placed layers to burn's, with every weight drawn as the study says: burn's own defaults differ
//! from layer to layer.

use burn::module::Param;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{
    DropoutConfig, Embedding, GateController, GroupNormConfig, GruConfig, LayerNormConfig, Linear,
    LstmConfig, PaddingConfig2d,
};
use burn::tensor::{Device, Distribution, Tensor};

use super::batch_norm::BatchNorm;
use super::{Attention, Node, Operation, Plain, Positions, Residual, Scale};
use crate::study::{Cell, Initialisation, Layer, Normalization, Placed, Shape};

/// The bias of an LSTM's forget gate, so that it remembers at first (Gers et al. 2000; Jozefowicz et al. 2015).
const FORGET_BIAS: f32 = 1.0;

pub(super) fn nodes(
    layers: &[Placed],
    initialisation: Initialisation,
    device: &Device,
) -> Vec<Node> {
    let drawing = Drawing {
        initialisation,
        device,
    };
    layers
        .iter()
        .filter_map(|placed| drawing.node(placed))
        .collect()
}

/// A count that was checked to be addressable before anything was built.
fn size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Features, channels or the width of a position.
fn width(shape: Shape) -> u64 {
    match shape {
        Shape::Features { width } | Shape::Sequence { width, .. } => width,
        Shape::Image { channels, .. } => channels,
        Shape::Tokens { vocabulary, .. } => vocabulary,
    }
}

struct Drawing<'a> {
    initialisation: Initialisation,
    device: &'a Device,
}

impl Drawing<'_> {
    /// `None` for a layer that does nothing.
    fn node(&self, placed: &Placed) -> Option<Node> {
        let inputs = width(placed.input);
        let plain = |operation: Operation| Node::Plain(Plain { operation });
        Some(match &placed.layer {
            Layer::Linear { units, bias } => {
                Node::Linear(self.linear(inputs, *units, *bias, placed.feeds_relu))
            }
            Layer::Output {} => {
                Node::Linear(self.linear(inputs, width(placed.output), true, placed.feeds_relu))
            }
            Layer::Conv2d {
                channels,
                kernel,
                stride,
                padding,
                bias,
            } => {
                let padding = padding.unwrap_or(kernel.saturating_sub(1) / 2);
                Node::Conv2d(self.conv(
                    [inputs, *channels],
                    [*kernel, *stride, padding],
                    *bias,
                    placed.feeds_relu,
                ))
            }
            Layer::Patches { size, width } => {
                Node::Patches(self.conv([inputs, *width], [*size, *size, 0], true, false))
            }
            Layer::Norm { normalization } => match normalization {
                Normalization::None {} => return None,
                Normalization::Batch { momentum, epsilon } => Node::BatchNorm(BatchNorm::new(
                    size(inputs),
                    None,
                    *momentum,
                    *epsilon,
                    self.device,
                )),
                Normalization::GhostBatch {
                    batch_size,
                    momentum,
                    epsilon,
                } => Node::BatchNorm(BatchNorm::new(
                    size(inputs),
                    Some(size(*batch_size)),
                    *momentum,
                    *epsilon,
                    self.device,
                )),
                Normalization::Group { groups, epsilon } => Node::GroupNorm(
                    GroupNormConfig::new(size(*groups), size(inputs))
                        .with_epsilon(*epsilon)
                        .with_affine(true)
                        .init(self.device),
                ),
                Normalization::Layer { epsilon } => Node::LayerNorm(
                    LayerNormConfig::new(size(inputs))
                        .with_epsilon(*epsilon)
                        .with_bias(true)
                        .init(self.device),
                ),
            },
            Layer::Activation { function } => plain(Operation::Activation(*function)),
            // Nothing is dropped: then it should cost nothing, either.
            Layer::Dropout { probability } if *probability == 0.0 => return None,
            Layer::Dropout { probability } => {
                Node::Dropout(DropoutConfig::new(*probability).init())
            }
            Layer::MaxPool2d {
                kernel,
                stride,
                padding,
            } => plain(Operation::MaxPool {
                kernel: size(*kernel),
                stride: size(*stride),
                padding: size(*padding),
            }),
            Layer::AvgPool2d { kernel, stride } => plain(Operation::AvgPool {
                kernel: size(*kernel),
                stride: size(*stride),
            }),
            Layer::GlobalAvgPool {} => plain(Operation::GlobalAvgPool),
            Layer::Flatten {} => plain(Operation::Flatten),
            Layer::Embedding { width } => {
                let deviation = self.initialisation.embedding_deviation(*width);
                Node::Embedding(Embedding {
                    weight: self.normal([size(inputs), size(*width)], deviation),
                })
            }
            Layer::PositionEmbedding {} => {
                let length = match placed.input {
                    Shape::Sequence { length, .. } => length,
                    _ => 1,
                };
                let deviation = self.initialisation.embedding_deviation(inputs);
                Node::Positions(Positions {
                    weight: self.normal([size(length), size(inputs)], deviation),
                })
            }
            Layer::Rows {} => plain(Operation::Rows),
            Layer::SelfAttention { heads, causal } => {
                let linear = || self.linear(inputs, inputs, true, false);
                Node::Attention(Attention {
                    projections: vec![linear(), linear(), linear(), linear()],
                    heads: size(*heads),
                    causal: *causal,
                })
            }
            Layer::Recurrent { cell, units } => self.recurrent(*cell, inputs, *units),
            Layer::MeanOverSequence {} => plain(Operation::MeanOverSequence),
            Layer::LastOfSequence {} => plain(Operation::LastOfSequence),
            Layer::Residual { .. } => Node::Residual(Residual {
                layers: nodes(&placed.inside, self.initialisation, self.device),
                shortcut: nodes(&placed.shortcut, self.initialisation, self.device),
            }),
            Layer::Subsample { stride, channels } => plain(Operation::Subsample {
                stride: size(*stride),
                channels: size(*channels),
            }),
            Layer::Scale {} => Node::Scale(Scale {
                weight: self.constant(size(inputs), 1.0),
            }),
            Layer::Unembedding {} => plain(Operation::Unembedding),
        })
    }

    fn normal<const D: usize>(&self, shape: [usize; D], deviation: f64) -> Param<Tensor<D>> {
        Param::from_tensor(Tensor::random(
            shape,
            Distribution::Normal(0.0, deviation),
            self.device,
        ))
    }

    fn constant(&self, length: usize, value: f32) -> Param<Tensor<1>> {
        Param::from_tensor(Tensor::full([length], value, self.device))
    }

    /// Weights of the shape `[inputs, outputs]`.
    fn linear(&self, inputs: u64, outputs: u64, bias: bool, feeds_relu: bool) -> Linear {
        let deviation = self.initialisation.deviation(inputs, outputs, feeds_relu);
        Linear {
            weight: self.normal([size(inputs), size(outputs)], deviation),
            bias: bias.then(|| self.constant(size(outputs), 0.0)),
        }
    }

    fn conv(
        &self,
        [inputs, outputs]: [u64; 2],
        [kernel, stride, padding]: [u64; 3],
        bias: bool,
        feeds_relu: bool,
    ) -> Conv2d {
        let window = kernel.saturating_mul(kernel);
        let deviation = self.initialisation.deviation(
            inputs.saturating_mul(window),
            outputs.saturating_mul(window),
            feeds_relu,
        );
        let side = size(padding);
        // The configuration first, without drawing; then the weights as the study wants them.
        let layer = Conv2dConfig::new([size(inputs), size(outputs)], [size(kernel); 2])
            .with_stride([size(stride); 2])
            .with_padding(PaddingConfig2d::Explicit(side, side, side, side))
            .with_bias(bias)
            .with_initializer(burn::nn::Initializer::Zeros)
            .init(self.device);
        Conv2d {
            weight: self.normal(
                [size(outputs), size(inputs), size(kernel), size(kernel)],
                deviation,
            ),
            ..layer
        }
    }

    fn recurrent(&self, cell: Cell, inputs: u64, units: u64) -> Node {
        let gate = |gate: &mut GateController, bias: f32| {
            gate.input_transform = self.linear(inputs, units, true, false);
            gate.hidden_transform = self.linear(units, units, true, false);
            gate.input_transform.bias = Some(self.constant(size(units), bias));
        };
        let zeros = burn::nn::Initializer::Zeros;
        match cell {
            Cell::Lstm => {
                let mut layer = LstmConfig::new(size(inputs), size(units), true)
                    .with_initializer(zeros)
                    .init(self.device);
                gate(&mut layer.input_gate, 0.0);
                gate(&mut layer.output_gate, 0.0);
                gate(&mut layer.cell_gate, 0.0);
                if let Some(forget) = layer.forget_gate.as_mut() {
                    gate(forget, FORGET_BIAS);
                }
                Node::Lstm(vec![layer])
            }
            Cell::Gru => {
                let mut layer = GruConfig::new(size(inputs), size(units), true)
                    .with_initializer(zeros)
                    .init(self.device);
                gate(&mut layer.update_gate, 0.0);
                gate(&mut layer.reset_gate, 0.0);
                gate(&mut layer.new_gate, 0.0);
                Node::Gru(vec![layer])
            }
        }
    }
}
