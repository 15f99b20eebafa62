//! The recipes of the model families.

use super::NetworkError;
use crate::study::shape::{Facts, Shape, Target};
use crate::study::{Activation, Layer, Model, Normalization, ResnetStyle};

/// The layers of a family for a data set.
pub(super) fn layers(model: &Model, facts: &Facts) -> Result<Vec<Layer>, NetworkError> {
    let refuse = |detail: String| Err(NetworkError::new("", detail));
    if let Target::NextToken { .. } = facts.target
        && !matches!(
            model,
            Model::TransformerLm { .. } | Model::Rnn { .. } | Model::External { .. }
        )
    {
        return refuse(format!(
            "{} does not predict the next token; take \"transformer_lm\" or \"rnn\"",
            model.family()
        ));
    }
    Ok(match model {
        Model::Mlp {
            hidden,
            activation,
            normalization,
            dropout,
            ..
        } => {
            let mut layers = Vec::new();
            match facts.input {
                Shape::Features { .. } => {}
                Shape::Image { .. } | Shape::Sequence { .. } => layers.push(Layer::Flatten {}),
                Shape::Tokens { .. } => {
                    return refuse(
                        "mlp does not read tokens; take \"transformer_encoder\" or \"rnn\"".into(),
                    );
                }
            }
            for &units in hidden {
                layers.push(Layer::Linear { units, bias: true });
                norm(&mut layers, normalization);
                layers.push(Layer::Activation {
                    function: *activation,
                });
                drop_out(&mut layers, *dropout);
            }
            layers.push(Layer::Output {});
            layers
        }
        Model::Cnn {
            channels,
            convolutions,
            kernel,
            activation,
            normalization,
            dropout,
            ..
        } => {
            let (mut height, mut width) = image("cnn", facts)?;
            let mut layers = Vec::new();
            for (stage, &channels) in channels.iter().enumerate() {
                if stage > 0 && height >= 2 && width >= 2 {
                    layers.push(Layer::MaxPool2d {
                        kernel: 2,
                        stride: 2,
                        padding: 0,
                    });
                    (height, width) = (height / 2, width / 2);
                }
                for _ in 0..*convolutions {
                    layers.push(conv(
                        channels,
                        *kernel,
                        1,
                        *normalization == Normalization::None {},
                    ));
                    norm(&mut layers, normalization);
                    layers.push(Layer::Activation {
                        function: *activation,
                    });
                }
            }
            layers.push(Layer::GlobalAvgPool {});
            drop_out(&mut layers, *dropout);
            layers.push(Layer::Output {});
            layers
        }
        Model::Resnet {
            style,
            depth,
            width_factor,
            normalization,
            activation,
            dropout,
            ..
        } => {
            image("resnet", facts)?;
            let parts = Resnet {
                normalization,
                activation: *activation,
                width_factor: *width_factor,
            };
            let mut layers = match style {
                ResnetStyle::Cifar => parts.cifar(*depth)?,
                ResnetStyle::Imagenet => parts.imagenet(*depth)?,
            };
            layers.push(Layer::GlobalAvgPool {});
            drop_out(&mut layers, *dropout);
            layers.push(Layer::Output {});
            layers
        }
        Model::TransformerEncoder {
            width,
            depth,
            heads,
            mlp_ratio,
            patch_size,
            activation,
            normalization,
            dropout,
            ..
        } => {
            let mut layers = vec![match facts.input {
                Shape::Image { .. } => Layer::Patches {
                    size: *patch_size,
                    width: *width,
                },
                Shape::Tokens { .. } => Layer::Embedding { width: *width },
                Shape::Sequence { .. } => Layer::Linear {
                    units: *width,
                    bias: true,
                },
                Shape::Features { width } => {
                    return refuse(format!(
                        "transformer_encoder reads images, sequences or tokens, but an example of this data set is {width} features; take \"mlp\""
                    ));
                }
            }];
            layers.push(Layer::PositionEmbedding {});
            drop_out(&mut layers, *dropout);
            let block = TransformerBlock {
                width: *width,
                heads: *heads,
                mlp_ratio: *mlp_ratio,
                activation: *activation,
                normalization,
                dropout: *dropout,
                causal: false,
            };
            for _ in 0..*depth {
                layers.extend(block.layers());
            }
            norm(&mut layers, normalization);
            layers.push(Layer::MeanOverSequence {});
            layers.push(Layer::Output {});
            layers
        }
        Model::TransformerLm {
            width,
            depth,
            heads,
            mlp_ratio,
            activation,
            normalization,
            dropout,
            ..
        } => {
            if !matches!(facts.target, Target::NextToken { .. }) {
                return refuse(format!(
                    "transformer_lm predicts the next token of a text, but the task of this data set is {}; take \"transformer_encoder\"",
                    facts.target.task()
                ));
            }
            let mut layers = vec![
                Layer::Embedding { width: *width },
                Layer::PositionEmbedding {},
            ];
            drop_out(&mut layers, *dropout);
            let block = TransformerBlock {
                width: *width,
                heads: *heads,
                mlp_ratio: *mlp_ratio,
                activation: *activation,
                normalization,
                dropout: *dropout,
                causal: true,
            };
            for _ in 0..*depth {
                layers.extend(block.layers());
            }
            norm(&mut layers, normalization);
            layers.push(Layer::Unembedding {});
            layers
        }
        Model::Rnn {
            cell,
            units,
            depth,
            embedding,
            dropout,
            ..
        } => {
            let mut layers = match facts.input {
                Shape::Tokens { .. } => vec![Layer::Embedding { width: *embedding }],
                Shape::Image { .. } => vec![Layer::Rows {}],
                Shape::Sequence { .. } => vec![],
                Shape::Features { width } => {
                    return refuse(format!(
                        "rnn reads sequences, tokens or the rows of images, but an example of this data set is {width} features; take \"mlp\""
                    ));
                }
            };
            for _ in 0..*depth {
                layers.push(Layer::Recurrent {
                    cell: *cell,
                    units: *units,
                });
                drop_out(&mut layers, *dropout);
            }
            if !matches!(facts.target, Target::NextToken { .. }) {
                layers.push(Layer::LastOfSequence {});
            }
            layers.push(Layer::Output {});
            layers
        }
        Model::Sequential { layers, .. } => layers.clone(),
        Model::External { .. } => {
            return refuse(
                "what an external model is made of is known to its own program only".into(),
            );
        }
    })
}

/// Height and width of the examples, which must be images.
fn image(family: &str, facts: &Facts) -> Result<(u64, u64), NetworkError> {
    match facts.input {
        Shape::Image { height, width, .. } => Ok((height, width)),
        other => Err(NetworkError::new(
            "",
            format!("{family} reads images, but an example of this data set is {other}"),
        )),
    }
}

fn norm(layers: &mut Vec<Layer>, normalization: &Normalization) {
    if *normalization != (Normalization::None {}) {
        layers.push(Layer::Norm {
            normalization: normalization.clone(),
        });
    }
}

fn drop_out(layers: &mut Vec<Layer>, probability: f64) {
    if probability > 0.0 {
        layers.push(Layer::Dropout { probability });
    }
}

fn conv(channels: u64, kernel: u64, stride: u64, bias: bool) -> Layer {
    Layer::Conv2d {
        channels,
        kernel,
        stride,
        padding: None,
        bias,
    }
}

struct Resnet<'a> {
    normalization: &'a Normalization,
    activation: Activation,
    width_factor: u64,
}

impl Resnet<'_> {
    /// Stem and stages for small images: He et al. 2016, section 4.2.
    fn cifar(&self, depth: u64) -> Result<Vec<Layer>, NetworkError> {
        if depth < 8 || !(depth - 2).is_multiple_of(6) {
            return Err(NetworkError::new(
                "/depth",
                format!(
                    "must be 6n + 2 (8, 14, 20, 32, 44, 56, 110) for the style cifar, is {depth}"
                ),
            ));
        }
        let blocks = (depth - 2) / 6;
        let mut layers = Vec::new();
        self.convolution(&mut layers, 16, 3, 1, true);
        for (stage, channels) in [16, 32, 64].into_iter().enumerate() {
            for block in 0..blocks {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let mut inside = Vec::new();
                self.convolution(&mut inside, channels, 3, stride, true);
                self.convolution(&mut inside, channels, 3, 1, false);
                let shortcut = if stride == 2 {
                    vec![Layer::Subsample {
                        stride,
                        channels: channels.saturating_mul(self.width_factor),
                    }]
                } else {
                    vec![]
                };
                self.residual(&mut layers, inside, shortcut);
            }
        }
        Ok(layers)
    }

    /// Stem and stages for large images: He et al. 2016, table 1, with projections (option B) and
    /// the stride of a bottleneck in its 3×3 convolution.
    fn imagenet(&self, depth: u64) -> Result<Vec<Layer>, NetworkError> {
        let (blocks, bottleneck) = match depth {
            18 => ([2, 2, 2, 2], false),
            34 => ([3, 4, 6, 3], false),
            50 => ([3, 4, 6, 3], true),
            other => {
                return Err(NetworkError::new(
                    "/depth",
                    format!("must be 18, 34 or 50 for the style imagenet, is {other}"),
                ));
            }
        };
        let mut layers = Vec::new();
        self.convolution(&mut layers, 64, 7, 2, true);
        layers.push(Layer::MaxPool2d {
            kernel: 3,
            stride: 2,
            padding: 1,
        });
        let mut inputs = 64;
        for (stage, (channels, count)) in [64, 128, 256, 512].into_iter().zip(blocks).enumerate() {
            for block in 0..count {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let outputs = if bottleneck { channels * 4 } else { channels };
                let mut inside = Vec::new();
                if bottleneck {
                    self.convolution(&mut inside, channels, 1, 1, true);
                    self.convolution(&mut inside, channels, 3, stride, true);
                    self.convolution(&mut inside, outputs, 1, 1, false);
                } else {
                    self.convolution(&mut inside, channels, 3, stride, true);
                    self.convolution(&mut inside, outputs, 3, 1, false);
                }
                let mut shortcut = Vec::new();
                if stride != 1 || inputs != outputs {
                    self.convolution(&mut shortcut, outputs, 1, stride, false);
                }
                self.residual(&mut layers, inside, shortcut);
                inputs = outputs;
            }
        }
        Ok(layers)
    }

    fn convolution(
        &self,
        layers: &mut Vec<Layer>,
        channels: u64,
        kernel: u64,
        stride: u64,
        activate: bool,
    ) {
        let bias = *self.normalization == Normalization::None {};
        let channels = channels.saturating_mul(self.width_factor);
        layers.push(conv(channels, kernel, stride, bias));
        norm(layers, self.normalization);
        if activate {
            layers.push(Layer::Activation {
                function: self.activation,
            });
        }
    }

    fn residual(&self, layers: &mut Vec<Layer>, inside: Vec<Layer>, shortcut: Vec<Layer>) {
        layers.push(Layer::Residual {
            layers: inside,
            shortcut,
        });
        layers.push(Layer::Activation {
            function: self.activation,
        });
    }
}

struct TransformerBlock<'a> {
    width: u64,
    heads: u64,
    mlp_ratio: u64,
    activation: Activation,
    normalization: &'a Normalization,
    dropout: f64,
    causal: bool,
}

impl TransformerBlock<'_> {
    /// Attention and the feed-forward part, each normalised first (Radford et al. 2019).
    fn layers(&self) -> [Layer; 2] {
        let mut attention = Vec::new();
        norm(&mut attention, self.normalization);
        attention.push(Layer::SelfAttention {
            heads: self.heads,
            causal: self.causal,
        });
        drop_out(&mut attention, self.dropout);

        let mut feed_forward = Vec::new();
        norm(&mut feed_forward, self.normalization);
        feed_forward.push(Layer::Linear {
            units: self.width.saturating_mul(self.mlp_ratio),
            bias: true,
        });
        feed_forward.push(Layer::Activation {
            function: self.activation,
        });
        feed_forward.push(Layer::Linear {
            units: self.width,
            bias: true,
        });
        drop_out(&mut feed_forward, self.dropout);
        [attention, feed_forward].map(|layers| Layer::Residual {
            layers,
            shortcut: vec![],
        })
    }
}
