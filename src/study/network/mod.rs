//! From a model and a data set to layers in their places: shapes, parameter counts, what is drawn how.
//! Every mismatch is found here, named by its layer, before anything runs.

mod families;

use std::fmt;

use super::shape::{Facts, Shape, Target};
use super::{Activation, Cell, Initialisation, Layer, Model, Normalization};

/// A network that fits its data set.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// The shape of one example.
    pub input: Shape,
    /// First to last.
    pub layers: Vec<Placed>,
    /// The shape of the prediction for one example.
    pub output: Shape,
    /// How weights are drawn.
    pub initialisation: Initialisation,
}

/// A layer with what it reads and what it gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// The layer.
    pub layer: Layer,
    /// What it reads, for one example.
    pub input: Shape,
    /// What it gives, for one example.
    pub output: Shape,
    /// Whether its result goes into a ReLU or a GELU.
    pub feeds_relu: bool,
    /// The layers of a residual block.
    pub inside: Vec<Placed>,
    /// The shortcut of a residual block.
    pub shortcut: Vec<Placed>,
}

/// A layer that does not fit where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkError {
    /// JSON pointer within the model to the layer or parameter at fault; empty for the family itself.
    pub pointer: String,
    /// What is wrong and what would mend it.
    pub detail: String,
}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pointer.is_empty() {
            f.write_str(&self.detail)
        } else {
            write!(f, "{}: {}", self.pointer, self.detail)
        }
    }
}

impl std::error::Error for NetworkError {}

impl NetworkError {
    fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            detail: detail.into(),
        }
    }
}

impl Network {
    /// Puts a model's layers in their places for a data set.
    ///
    /// # Errors
    /// The first layer that cannot read what the one before it gives.
    pub fn new(model: &Model, facts: &Facts) -> Result<Self, NetworkError> {
        let recipe;
        let (layers, named) = match model {
            Model::Sequential { layers, .. } => (layers, true),
            family => {
                recipe = families::layers(family, facts)?;
                (&recipe, false)
            }
        };
        let mut builder = Builder {
            target: facts.target,
            embedding: None,
            named,
        };
        let placed = builder.place_all(layers, facts.input, "/layers", false, 0)?;
        let output = placed.last().map_or(facts.input, |last| last.output);
        let length = match facts.input {
            Shape::Tokens { length, .. } => length,
            _ => 1,
        };
        let needed = facts.target.prediction(length);
        if output != needed {
            let pointer = if named {
                format!("/layers/{}", layers.len().saturating_sub(1))
            } else {
                String::new()
            };
            return Err(NetworkError::new(
                pointer,
                format!(
                    "the network gives {output}, but {} of this data set needs {needed}; end with the layer \"output\", which takes its width from the data set",
                    facts.target.task()
                ),
            ));
        }
        Ok(Self {
            input: facts.input,
            layers: placed,
            output,
            initialisation: model.initialisation(),
        })
    }

    /// Trainable parameters. Saturates instead of overflowing.
    pub fn parameters(&self) -> u64 {
        self.fold(0, &mut |total: u64, placed| {
            total.saturating_add(placed.parameters())
        })
    }

    /// Multiply-accumulate operations of the forward pass of one example, those of convolutions, matrix
    /// products and recurrences; element-wise work is not counted. Saturates.
    pub fn multiplications(&self) -> u64 {
        self.fold(0, &mut |total: u64, placed| {
            total.saturating_add(placed.multiplications())
        })
    }

    /// Layers, those inside residual blocks included.
    pub fn depth(&self) -> u64 {
        self.fold(0, &mut |count: u64, _| count + 1)
    }

    /// Numbers in the largest tensor of one example, attention scores included.
    pub fn largest_activation(&self) -> u64 {
        self.fold(self.input.numbers(), &mut |largest: u64, placed| {
            let scores = match (&placed.layer, placed.input) {
                (Layer::SelfAttention { heads, .. }, Shape::Sequence { length, .. }) => {
                    heads.saturating_mul(length).saturating_mul(length)
                }
                _ => 0,
            };
            largest.max(scores).max(placed.output.numbers())
        })
    }

    /// Numbers in the largest layer's parameters.
    pub fn largest_parameters(&self) -> u64 {
        self.fold(0, &mut |largest: u64, placed| {
            largest.max(placed.parameters())
        })
    }

    /// Whether some units are dropped in training.
    pub fn drops_units(&self) -> bool {
        self.fold(false, &mut |found, placed| {
            found || matches!(placed.layer, Layer::Dropout { probability } if probability > 0.0)
        })
    }

    /// Whether a layer's statistics are taken over the batch, and over how many examples if not over
    /// all of it.
    pub fn normalises_over_batch(&self) -> bool {
        self.fold(false, &mut |found, placed| {
            found
                || matches!(
                    placed.layer,
                    Layer::Norm {
                        normalization: Normalization::Batch { .. }
                            | Normalization::GhostBatch { .. }
                    }
                )
        })
    }

    /// The normalizations whose statistics are taken over the batch, first to last.
    pub fn batch_normalizations(&self) -> Vec<Normalization> {
        self.fold(Vec::new(), &mut |mut found: Vec<Normalization>, placed| {
            if let Layer::Norm {
                normalization:
                    normalization @ (Normalization::Batch { .. } | Normalization::GhostBatch { .. }),
            } = &placed.layer
            {
                found.push(normalization.clone());
            }
            found
        })
    }

    /// Whether something holds for every layer.
    pub fn all(&self, holds: impl Fn(&Placed) -> bool) -> bool {
        self.fold(true, &mut |all, placed| all && holds(placed))
    }

    fn fold<T>(&self, start: T, function: &mut impl FnMut(T, &Placed) -> T) -> T {
        fold(&self.layers, start, function)
    }
}

fn fold<T>(layers: &[Placed], start: T, function: &mut impl FnMut(T, &Placed) -> T) -> T {
    layers.iter().fold(start, |value, placed| {
        let value = function(value, placed);
        let value = fold(&placed.inside, value, function);
        fold(&placed.shortcut, value, function)
    })
}

impl Placed {
    /// Trainable parameters of this layer alone, without those inside a residual block.
    pub fn parameters(&self) -> u64 {
        let dense = |inputs: u64, outputs: u64, bias: bool| {
            inputs
                .saturating_mul(outputs)
                .saturating_add(if bias { outputs } else { 0 })
        };
        match (&self.layer, self.input) {
            (Layer::Linear { units, bias }, input) => dense(last_axis(input), *units, *bias),
            (
                Layer::Conv2d {
                    channels,
                    kernel,
                    bias,
                    ..
                },
                Shape::Image {
                    channels: inputs, ..
                },
            ) => {
                let fan_in = inputs.saturating_mul(*kernel).saturating_mul(*kernel);
                dense(fan_in, *channels, *bias)
            }
            (Layer::Norm { normalization }, input) => match normalization {
                Normalization::None {} => 0,
                _ => last_axis(input).saturating_mul(2),
            },
            (Layer::Embedding { width }, Shape::Tokens { vocabulary, .. }) => {
                vocabulary.saturating_mul(*width)
            }
            (Layer::PositionEmbedding {}, input) => input.numbers(),
            (Layer::Patches { size, width }, Shape::Image { channels, .. }) => {
                let fan_in = channels.saturating_mul(*size).saturating_mul(*size);
                dense(fan_in, *width, true)
            }
            (Layer::SelfAttention { .. }, input) => {
                dense(last_axis(input), last_axis(input), true).saturating_mul(4)
            }
            (Layer::Recurrent { cell, units }, input) => {
                let gates = match cell {
                    Cell::Lstm => 4,
                    Cell::Gru => 3,
                };
                // Each gate reads the input and the state, each through a layer with a bias.
                dense(last_axis(input), *units, true)
                    .saturating_add(dense(*units, *units, true))
                    .saturating_mul(gates)
            }
            (Layer::Scale {}, input) => input.numbers(),
            (Layer::Output {}, input) => dense(last_axis(input), last_axis(self.output), true),
            _ => 0,
        }
    }
}

impl Placed {
    /// See [`Network::multiplications`]; of this layer alone.
    fn multiplications(&self) -> u64 {
        // A weight is used once for each position; a bias is only added.
        let positions = |shape: Shape| match shape {
            Shape::Features { .. } => 1,
            Shape::Sequence { length, .. } | Shape::Tokens { length, .. } => length,
            Shape::Image { height, width, .. } => height.saturating_mul(width),
        };
        let product = |inputs: u64, outputs: u64| inputs.saturating_mul(outputs);
        let (inputs, outputs) = (last_axis(self.input), last_axis(self.output));
        let each = match &self.layer {
            Layer::Linear { .. } | Layer::Output {} | Layer::Unembedding {} => {
                product(inputs, outputs)
            }
            Layer::Conv2d { kernel, .. } => {
                product(inputs, outputs).saturating_mul(kernel.saturating_mul(*kernel))
            }
            Layer::Patches { size, .. } => {
                product(inputs, outputs).saturating_mul(size.saturating_mul(*size))
            }
            // Four projections, and for each position the scores and the mixture over all positions.
            Layer::SelfAttention { .. } => {
                product(inputs, inputs).saturating_mul(4).saturating_add(
                    positions(self.input)
                        .saturating_mul(inputs)
                        .saturating_mul(2),
                )
            }
            Layer::Recurrent { cell, units } => {
                let gates = match cell {
                    Cell::Lstm => 4,
                    Cell::Gru => 3,
                };
                product(inputs.saturating_add(*units), *units).saturating_mul(gates)
            }
            _ => 0,
        };
        each.saturating_mul(positions(self.output))
    }
}

/// Features of a vector, channels of an image, the width of a position.
fn last_axis(shape: Shape) -> u64 {
    match shape {
        Shape::Features { width } | Shape::Sequence { width, .. } => width,
        Shape::Image { channels, .. } => channels,
        Shape::Tokens { .. } => 1,
    }
}

impl Initialisation {
    /// Standard deviation of weights with so many inputs and outputs.
    pub fn deviation(self, fan_in: u64, fan_out: u64, feeds_relu: bool) -> f64 {
        let variance = match self {
            Self::He => 2.0 / fan_in as f64,
            Self::ByActivation if feeds_relu => 2.0 / fan_in as f64,
            Self::ByActivation | Self::Lecun => 1.0 / fan_in as f64,
            Self::Xavier => 2.0 / (fan_in as f64 + fan_out as f64),
            Self::SmallNormal => return SMALL_DEVIATION,
        };
        variance.sqrt()
    }

    /// Standard deviation of an embedding of this width.
    pub fn embedding_deviation(self, width: u64) -> f64 {
        match self {
            Self::SmallNormal => SMALL_DEVIATION,
            _ => (1.0 / width as f64).sqrt(),
        }
    }
}

const SMALL_DEVIATION: f64 = 0.02;

struct Builder {
    target: Target,
    /// Vocabulary and width of the embedding outside every residual block.
    embedding: Option<(u64, u64)>,
    /// Whether the layers were posted, so that a pointer to one of them says something.
    named: bool,
}

impl Builder {
    /// `then_relu`: what the list's result goes into.
    fn place_all(
        &mut self,
        layers: &[Layer],
        input: Shape,
        pointer: &str,
        then_relu: bool,
        level: u32,
    ) -> Result<Vec<Placed>, NetworkError> {
        let mut shape = input;
        let mut placed = Vec::with_capacity(layers.len());
        for (index, layer) in layers.iter().enumerate() {
            let feeds_relu = feeds_relu(&layers[index + 1..], then_relu);
            let pointer = format!("{pointer}/{index}");
            let next = self.place(layer, shape, &pointer, feeds_relu, level)?;
            shape = next.output;
            placed.push(next);
        }
        Ok(placed)
    }

    fn place(
        &mut self,
        layer: &Layer,
        input: Shape,
        pointer: &str,
        feeds_relu: bool,
        level: u32,
    ) -> Result<Placed, NetworkError> {
        let (mut inside, mut shortcut) = (Vec::new(), Vec::new());
        let output = match layer {
            Layer::Residual {
                layers,
                shortcut: around,
            } => {
                inside = self.place_all(
                    layers,
                    input,
                    &format!("{pointer}/layers"),
                    feeds_relu,
                    level + 1,
                )?;
                shortcut = self.place_all(
                    around,
                    input,
                    &format!("{pointer}/shortcut"),
                    feeds_relu,
                    level + 1,
                )?;
                let output = inside.last().map_or(input, |last| last.output);
                let around = shortcut.last().map_or(input, |last| last.output);
                if output != around {
                    return Err(self.error(
                        layer,
                        pointer,
                        format!(
                            "its layers give {output}, but its shortcut gives {around}; both must be the same to be added"
                        ),
                    ));
                }
                output
            }
            Layer::Embedding { width } if level == 0 => {
                let output = self.output(layer, input, pointer)?;
                if let Shape::Tokens { vocabulary, .. } = input {
                    self.embedding = Some((vocabulary, *width));
                }
                output
            }
            Layer::Unembedding {} if level > 0 => {
                return Err(self.error(layer, pointer, "cannot be in a residual block".into()));
            }
            _ => self.output(layer, input, pointer)?,
        };
        Ok(Placed {
            layer: layer.clone(),
            input,
            output,
            feeds_relu,
            inside,
            shortcut,
        })
    }

    /// The shape of a simple layer's result.
    fn output(&self, layer: &Layer, input: Shape, pointer: &str) -> Result<Shape, NetworkError> {
        let refuse = |needs: &str| {
            Err(self.error(
                layer,
                pointer,
                format!("needs {needs}, but what comes before it gives {input}"),
            ))
        };
        const VECTORS: &str = "features or a sequence (\"flatten\" or \"global_avg_pool\" make features of an image, \"rows\" or \"patches\" a sequence, \"embedding\" a sequence of tokens)";
        const AN_IMAGE: &str = "an image";
        const A_SEQUENCE: &str =
            "a sequence (\"embedding\" makes one of tokens, \"rows\" or \"patches\" of an image)";
        let output = match (layer, input) {
            (Layer::Linear { units, .. }, Shape::Features { .. }) => {
                Shape::Features { width: *units }
            }
            (Layer::Linear { units, .. }, Shape::Sequence { length, .. }) => Shape::Sequence {
                length,
                width: *units,
            },
            (Layer::Linear { .. }, _) => return refuse(VECTORS),
            (
                Layer::Conv2d {
                    channels,
                    kernel,
                    stride,
                    padding,
                    ..
                },
                Shape::Image { height, width, .. },
            ) => {
                let padding = padding.unwrap_or(kernel.saturating_sub(1) / 2);
                self.window(
                    layer,
                    pointer,
                    *channels,
                    (height, width),
                    *kernel,
                    *stride,
                    padding,
                )?
            }
            (Layer::Conv2d { .. }, _) => return refuse(AN_IMAGE),
            (
                Layer::MaxPool2d {
                    kernel,
                    stride,
                    padding,
                },
                Shape::Image {
                    channels,
                    height,
                    width,
                },
            ) => {
                if padding.saturating_mul(2) > *kernel {
                    return Err(self.error(
                        layer,
                        pointer,
                        format!(
                            "padding must be at most half of the kernel, {kernel}; is {padding}"
                        ),
                    ));
                }
                self.window(
                    layer,
                    pointer,
                    channels,
                    (height, width),
                    *kernel,
                    *stride,
                    *padding,
                )?
            }
            (
                Layer::AvgPool2d { kernel, stride },
                Shape::Image {
                    channels,
                    height,
                    width,
                },
            ) => self.window(
                layer,
                pointer,
                channels,
                (height, width),
                *kernel,
                *stride,
                0,
            )?,
            (Layer::MaxPool2d { .. } | Layer::AvgPool2d { .. }, _) => return refuse(AN_IMAGE),
            (Layer::GlobalAvgPool {}, Shape::Image { channels, .. }) => {
                Shape::Features { width: channels }
            }
            (Layer::GlobalAvgPool {}, _) => return refuse(AN_IMAGE),
            (Layer::Flatten {}, Shape::Tokens { .. }) => {
                return refuse("an image, a sequence or features");
            }
            (Layer::Flatten {}, shape) => Shape::Features {
                width: shape.numbers(),
            },
            (Layer::Norm { normalization }, shape) => {
                self.normalized(layer, normalization, shape, pointer)?
            }
            (Layer::Activation { .. } | Layer::Dropout { .. }, Shape::Tokens { .. }) => {
                return refuse("numbers, not tokens (\"embedding\" makes a sequence of them)");
            }
            (Layer::Activation { .. } | Layer::Dropout { .. }, shape) => shape,
            (Layer::Embedding { width }, Shape::Tokens { length, .. }) => Shape::Sequence {
                length,
                width: *width,
            },
            (Layer::Embedding { .. }, _) => return refuse("tokens"),
            (Layer::PositionEmbedding {}, shape @ Shape::Sequence { .. }) => shape,
            (Layer::PositionEmbedding {}, _) => return refuse(A_SEQUENCE),
            (
                Layer::Patches { size, width },
                Shape::Image {
                    height,
                    width: columns,
                    ..
                },
            ) => {
                if *size == 0 || !height.is_multiple_of(*size) || !columns.is_multiple_of(*size) {
                    return Err(self.error(
                        layer,
                        pointer,
                        format!("patches of {size}×{size} do not cut an image of {height}×{columns} evenly; take a divisor of both"),
                    ));
                }
                Shape::Sequence {
                    length: (height / size).saturating_mul(columns / size),
                    width: *width,
                }
            }
            (Layer::Patches { .. }, _) => return refuse(AN_IMAGE),
            (
                Layer::Rows {},
                Shape::Image {
                    channels,
                    height,
                    width,
                },
            ) => Shape::Sequence {
                length: height,
                width: channels.saturating_mul(width),
            },
            (Layer::Rows {}, _) => return refuse(AN_IMAGE),
            (Layer::SelfAttention { heads, .. }, shape @ Shape::Sequence { width, .. }) => {
                if *heads == 0 || !width.is_multiple_of(*heads) {
                    return Err(self.error(
                        layer,
                        pointer,
                        format!(
                            "{heads} heads do not divide the width, {width}; take a divisor of it"
                        ),
                    ));
                }
                shape
            }
            (Layer::SelfAttention { .. }, _) => return refuse(A_SEQUENCE),
            (Layer::Recurrent { units, .. }, Shape::Sequence { length, .. }) => Shape::Sequence {
                length,
                width: *units,
            },
            (Layer::Recurrent { .. }, _) => return refuse(A_SEQUENCE),
            (
                Layer::MeanOverSequence {} | Layer::LastOfSequence {},
                Shape::Sequence { width, .. },
            ) => Shape::Features { width },
            (Layer::MeanOverSequence {} | Layer::LastOfSequence {}, _) => {
                return refuse(A_SEQUENCE);
            }
            (
                Layer::Subsample { stride, channels },
                Shape::Image {
                    channels: inputs,
                    height,
                    width,
                },
            ) => {
                if *channels < inputs {
                    return Err(self.error(
                        layer,
                        pointer,
                        format!("channels must be at least those of what comes before it, {inputs}; is {channels}"),
                    ));
                }
                Shape::Image {
                    channels: *channels,
                    height: height.div_ceil((*stride).max(1)),
                    width: width.div_ceil((*stride).max(1)),
                }
            }
            (Layer::Subsample { .. }, _) => return refuse(AN_IMAGE),
            (Layer::Scale {}, shape @ Shape::Features { .. }) => shape,
            (Layer::Scale {}, _) => return refuse("features (\"flatten\" makes them)"),
            (Layer::Output {}, shape) => match (self.target, shape) {
                (Target::NextToken { vocabulary }, Shape::Sequence { length, .. }) => {
                    Shape::Sequence {
                        length,
                        width: vocabulary,
                    }
                }
                (Target::NextToken { .. }, _) => return refuse(A_SEQUENCE),
                (target, Shape::Features { .. }) => Shape::Features {
                    width: target.width(),
                },
                _ => {
                    return refuse(
                        "features (\"flatten\", \"global_avg_pool\", \"mean_over_sequence\" or \"last_of_sequence\" make them)",
                    );
                }
            },
            (Layer::Unembedding {}, shape) => self.tied(layer, shape, pointer)?,
            (Layer::Residual { .. }, shape) => shape,
        };
        Ok(output)
    }

    /// A convolution's or a pooling's result.
    #[expect(clippy::too_many_arguments, reason = "the numbers of one formula")]
    fn window(
        &self,
        layer: &Layer,
        pointer: &str,
        channels: u64,
        (height, width): (u64, u64),
        kernel: u64,
        stride: u64,
        padding: u64,
    ) -> Result<Shape, NetworkError> {
        let side = |size: u64| {
            let padded = size.saturating_add(padding.saturating_mul(2));
            let room = padded.checked_sub(kernel)?;
            Some(room.checked_div(stride)? + 1)
        };
        match (side(height), side(width)) {
            (Some(height), Some(width)) => Ok(Shape::Image {
                channels,
                height,
                width,
            }),
            _ => Err(self.error(
                layer,
                pointer,
                format!(
                    "a window of {kernel}×{kernel} is larger than the image of {height}×{width} with a border of {padding}; take a smaller kernel, or fewer layers that shrink the image before it"
                ),
            )),
        }
    }

    fn normalized(
        &self,
        layer: &Layer,
        normalization: &Normalization,
        shape: Shape,
        pointer: &str,
    ) -> Result<Shape, NetworkError> {
        let refuse = |detail: String| Err(self.error(layer, pointer, detail));
        match (normalization, shape) {
            (_, Shape::Tokens { .. }) => refuse("cannot normalise tokens".into()),
            (Normalization::None {}, _) => Ok(shape),
            (
                Normalization::Batch { .. } | Normalization::GhostBatch { .. },
                Shape::Sequence { .. },
            ) => refuse(
                "over the batch works on features and images; for a sequence take \"layer\"".into(),
            ),
            (Normalization::Batch { .. } | Normalization::GhostBatch { .. }, _) => Ok(shape),
            (Normalization::Layer { .. }, Shape::Image { .. }) => refuse(
                "\"layer\" works on features and sequences; for an image take \"group\" with 1 group"
                    .into(),
            ),
            (Normalization::Layer { .. }, _) => Ok(shape),
            (Normalization::Group { .. }, Shape::Sequence { .. }) => refuse(
                "\"group\" works on features and images; for a sequence take \"layer\"".into(),
            ),
            (Normalization::Group { groups, .. }, _) => {
                let channels = last_axis(shape);
                if *groups > 0 && channels.is_multiple_of(*groups) {
                    Ok(shape)
                } else {
                    refuse(format!(
                        "{groups} groups do not divide {channels} channels; take a divisor of it"
                    ))
                }
            }
        }
    }

    fn tied(&self, layer: &Layer, shape: Shape, pointer: &str) -> Result<Shape, NetworkError> {
        let Target::NextToken { .. } = self.target else {
            return Err(self.error(
                layer,
                pointer,
                format!(
                    "predicts the next token, but the task is {}; use \"output\"",
                    self.target.task()
                ),
            ));
        };
        match (shape, self.embedding) {
            (Shape::Sequence { length, width }, Some((vocabulary, embedded)))
                if width == embedded =>
            {
                Ok(Shape::Sequence {
                    length,
                    width: vocabulary,
                })
            }
            (Shape::Sequence { width, .. }, Some((_, embedded))) => Err(self.error(
                layer,
                pointer,
                format!("needs the width of the embedding, {embedded}; what comes before it is {width} wide"),
            )),
            _ => Err(self.error(
                layer,
                pointer,
                "needs an \"embedding\" before it, outside of residual blocks, and a sequence".into(),
            )),
        }
    }

    fn error(&self, layer: &Layer, pointer: &str, detail: String) -> NetworkError {
        let pointer = if self.named { pointer } else { "" };
        NetworkError::new(pointer, format!("{}: {detail}", layer.name()))
    }
}

/// Whether what comes next applies a ReLU or a GELU, past layers that only scale, drop or pool.
fn feeds_relu(next: &[Layer], then_relu: bool) -> bool {
    for layer in next {
        match layer {
            Layer::Activation { function } => {
                return matches!(function, Activation::Relu | Activation::Gelu);
            }
            Layer::Norm { .. }
            | Layer::Dropout { .. }
            | Layer::MaxPool2d { .. }
            | Layer::AvgPool2d { .. } => {}
            _ => return false,
        }
    }
    then_relu
}

#[cfg(test)]
mod tests;
