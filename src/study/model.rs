//! Networks: model families with their size hyperparameters, and the layers that they are made of.
//!
//! Every family is a recipe for a list of [`Layer`]s, and a `sequential` model is such a list as
//! posted; [`Network`](super::Network) turns either into shapes and parameter counts.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A network: a family with its size hyperparameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "family", rename_all = "snake_case", deny_unknown_fields)]
pub enum Model {
    /// A multilayer perceptron: linear layers, each followed by normalization, activation and dropout.
    Mlp {
        /// Units of each hidden layer, first to last; empty for a linear model.
        #[serde(default = "default_hidden")]
        #[schema(default = json!([64]))]
        hidden: Vec<u64>,
        /// What follows each hidden layer.
        #[serde(default)]
        activation: Activation,
        /// Between a hidden layer and its activation.
        #[serde(default)]
        normalization: Normalization,
        /// Probability that a hidden unit is dropped in training.
        #[serde(default)]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0)]
        dropout: f64,
        /// How weights are drawn.
        #[serde(default)]
        initialisation: Initialisation,
    },
    /// A convolutional network for images: stages of convolution, normalization and activation, each
    /// stage but the last followed by 2×2 max pooling while the image is at least 2×2; then the mean
    /// over positions and the output layer.
    Cnn {
        /// Channels of each stage, first to last.
        #[serde(default = "default_channels")]
        #[schema(min_items = 1, default = json!([32, 64]))]
        channels: Vec<u64>,
        /// Convolutions of each stage.
        #[serde(default = "one")]
        #[schema(minimum = 1, maximum = 16, default = 1)]
        convolutions: u64,
        /// Side of a convolution's kernel.
        #[serde(default = "three")]
        #[schema(minimum = 1, maximum = 15, default = 3)]
        kernel: u64,
        /// What follows each convolution and its normalization.
        #[serde(default)]
        activation: Activation,
        /// Between a convolution and its activation.
        #[serde(default = "Normalization::batch")]
        normalization: Normalization,
        /// Probability that a unit is dropped before the output layer in training.
        #[serde(default)]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0)]
        dropout: f64,
        /// How weights are drawn.
        #[serde(default)]
        initialisation: Initialisation,
    },
    /// A residual network for images (He et al. 2016).
    Resnet {
        /// The stem, the stages and the shortcuts.
        #[serde(default)]
        style: ResnetStyle,
        /// Weighted layers: 6n + 2 for `cifar` (8, 14, 20, 32, 44, 56, 110), 18, 34 or 50 for `imagenet`.
        #[serde(default = "eight")]
        #[schema(minimum = 8, maximum = 1202, default = 8)]
        depth: u64,
        /// Multiplies the channels of every stage (16/32/64 for `cifar`, 64/128/256/512 for `imagenet`).
        #[serde(default = "one")]
        #[schema(minimum = 1, maximum = 64, default = 1)]
        width_factor: u64,
        /// After each convolution.
        #[serde(default = "Normalization::batch")]
        normalization: Normalization,
        /// After each normalization but a block's last, and after each sum.
        #[serde(default)]
        activation: Activation,
        /// Probability that a unit is dropped before the output layer in training.
        #[serde(default)]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0)]
        dropout: f64,
        /// How weights are drawn.
        #[serde(default)]
        initialisation: Initialisation,
    },
    /// A transformer that classifies: tokens, sequences of vectors, or the patches of an image (ViT).
    /// Normalization comes first in each block; the output layer reads the mean over positions.
    TransformerEncoder {
        /// Width of the residual stream.
        #[serde(default = "sixty_four")]
        #[schema(minimum = 1, maximum = 65536, default = 64)]
        width: u64,
        /// Blocks.
        #[serde(default = "two")]
        #[schema(minimum = 1, maximum = 128, default = 2)]
        depth: u64,
        /// Attention heads; they divide the width.
        #[serde(default = "four")]
        #[schema(minimum = 1, maximum = 1024, default = 4)]
        heads: u64,
        /// Hidden units of the feed-forward part over the width.
        #[serde(default = "four")]
        #[schema(minimum = 1, maximum = 64, default = 4)]
        mlp_ratio: u64,
        /// Side of a patch, where the examples are images; it divides their height and width.
        #[serde(default = "two")]
        #[schema(minimum = 1, maximum = 1024, default = 2)]
        patch_size: u64,
        /// Of the feed-forward part.
        #[serde(default = "Activation::gelu")]
        activation: Activation,
        /// Before attention, before the feed-forward part, and before the output.
        #[serde(default = "Normalization::layer")]
        normalization: Normalization,
        /// Probability of dropping after attention and after the feed-forward part in training.
        #[serde(default)]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0)]
        dropout: f64,
        /// How weights are drawn.
        #[serde(default)]
        initialisation: Initialisation,
    },
    /// A causal transformer that predicts the next token; the output layer shares the weights of the
    /// embedding (GPT-2).
    TransformerLm {
        /// Width of the residual stream.
        #[serde(default = "sixty_four")]
        #[schema(minimum = 1, maximum = 65536, default = 64)]
        width: u64,
        /// Blocks.
        #[serde(default = "two")]
        #[schema(minimum = 1, maximum = 128, default = 2)]
        depth: u64,
        /// Attention heads; they divide the width.
        #[serde(default = "four")]
        #[schema(minimum = 1, maximum = 1024, default = 4)]
        heads: u64,
        /// Hidden units of the feed-forward part over the width.
        #[serde(default = "four")]
        #[schema(minimum = 1, maximum = 64, default = 4)]
        mlp_ratio: u64,
        /// Of the feed-forward part.
        #[serde(default = "Activation::gelu")]
        activation: Activation,
        /// Before attention, before the feed-forward part, and before the output.
        #[serde(default = "Normalization::layer")]
        normalization: Normalization,
        /// Probability of dropping after the embedding, attention and the feed-forward part in training.
        #[serde(default)]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0)]
        dropout: f64,
        /// How weights are drawn.
        #[serde(default = "Initialisation::small_normal")]
        initialisation: Initialisation,
    },
    /// A recurrent network: it classifies from its last state, or predicts the next token from each.
    /// It reads tokens through an embedding, sequences as they are, and images row by row.
    Rnn {
        /// The recurrent cell.
        #[serde(default)]
        cell: Cell,
        /// Units of the state.
        #[serde(default = "sixty_four")]
        #[schema(minimum = 1, maximum = 65536, default = 64)]
        units: u64,
        /// Recurrent layers, one on the other.
        #[serde(default = "one")]
        #[schema(minimum = 1, maximum = 32, default = 1)]
        depth: u64,
        /// Width of the embedding, where the examples are tokens.
        #[serde(default = "sixty_four")]
        #[schema(minimum = 1, maximum = 65536, default = 64)]
        embedding: u64,
        /// Probability of dropping after each recurrent layer in training.
        #[serde(default)]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0)]
        dropout: f64,
        /// How weights are drawn.
        #[serde(default)]
        initialisation: Initialisation,
    },
    /// A network of one's own: layers, first to last. The last must give what the data set's targets
    /// need; `output` takes that width from the data set.
    Sequential {
        /// First to last.
        #[schema(min_items = 1)]
        layers: Vec<Layer>,
        /// How weights are drawn.
        #[serde(default)]
        initialisation: Initialisation,
    },
    /// A model that the service knows by name only: the program of a runner other than `burn` has it.
    External {
        /// Its name, with whatever tells its size.
        name: String,
        /// Trainable parameters, where they are known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(minimum = 1)]
        parameters: Option<u64>,
    },
}

fn default_hidden() -> Vec<u64> {
    vec![64]
}
fn default_channels() -> Vec<u64> {
    vec![32, 64]
}
fn one() -> u64 {
    1
}
fn two() -> u64 {
    2
}
fn three() -> u64 {
    3
}
fn four() -> u64 {
    4
}
fn eight() -> u64 {
    8
}
fn sixty_four() -> u64 {
    64
}

impl Model {
    /// A plain multilayer perceptron with ReLU.
    pub fn mlp(hidden: Vec<u64>) -> Self {
        Self::Mlp {
            hidden,
            activation: Activation::Relu,
            normalization: Normalization::None {},
            dropout: 0.0,
            initialisation: Initialisation::ByActivation,
        }
    }

    /// A small classifier of sequences.
    pub fn transformer_encoder() -> Self {
        Self::TransformerEncoder {
            width: sixty_four(),
            depth: two(),
            heads: four(),
            mlp_ratio: four(),
            patch_size: two(),
            activation: Activation::Gelu,
            normalization: Normalization::layer(),
            dropout: 0.0,
            initialisation: Initialisation::ByActivation,
        }
    }

    /// A small language model.
    pub fn transformer_lm() -> Self {
        Self::TransformerLm {
            width: sixty_four(),
            depth: two(),
            heads: four(),
            mlp_ratio: four(),
            activation: Activation::Gelu,
            normalization: Normalization::layer(),
            dropout: 0.0,
            initialisation: Initialisation::SmallNormal,
        }
    }

    /// The family's name.
    pub fn family(&self) -> &'static str {
        match self {
            Self::Mlp { .. } => "mlp",
            Self::Cnn { .. } => "cnn",
            Self::Resnet { .. } => "resnet",
            Self::TransformerEncoder { .. } => "transformer_encoder",
            Self::TransformerLm { .. } => "transformer_lm",
            Self::Rnn { .. } => "rnn",
            Self::Sequential { .. } => "sequential",
            Self::External { .. } => "external",
        }
    }

    /// How weights are drawn.
    pub fn initialisation(&self) -> Initialisation {
        match self {
            Self::Mlp { initialisation, .. }
            | Self::Cnn { initialisation, .. }
            | Self::Resnet { initialisation, .. }
            | Self::TransformerEncoder { initialisation, .. }
            | Self::TransformerLm { initialisation, .. }
            | Self::Rnn { initialisation, .. }
            | Self::Sequential { initialisation, .. } => *initialisation,
            Self::External { .. } => Initialisation::default(),
        }
    }

    /// Whether only another program knows what it is made of.
    pub fn is_external(&self) -> bool {
        matches!(self, Self::External { .. })
    }

    /// The probability of dropping a unit, where the family has one for the whole network.
    pub fn dropout(&self) -> Option<f64> {
        // Reading through the setter's place keeps the two together.
        self.clone().dropout_place().copied()
    }

    /// Changes it; nothing happens where there is none.
    pub fn set_dropout(&mut self, probability: f64) {
        if let Some(place) = self.dropout_place() {
            *place = probability;
        }
    }

    fn dropout_place(&mut self) -> Option<&mut f64> {
        match self {
            Self::Mlp { dropout, .. }
            | Self::Cnn { dropout, .. }
            | Self::Resnet { dropout, .. }
            | Self::TransformerEncoder { dropout, .. }
            | Self::TransformerLm { dropout, .. }
            | Self::Rnn { dropout, .. } => Some(dropout),
            Self::Sequential { .. } | Self::External { .. } => None,
        }
    }

    /// The same model with its widths scaled down; `None` where a family has no width to scale.
    pub fn scaled(&self, share: f64) -> Option<Self> {
        let scale = |size: u64| ((size as f64 * share) as u64).max(1);
        let mut scaled = self.clone();
        match &mut scaled {
            Self::Mlp { hidden: sizes, .. }
            | Self::Cnn {
                channels: sizes, ..
            } => {
                if sizes.is_empty() {
                    return None;
                }
                sizes.iter_mut().for_each(|size| *size = scale(*size));
            }
            Self::TransformerEncoder { width, heads, .. }
            | Self::TransformerLm { width, heads, .. } => {
                *width = (scale(*width) / *heads).max(1) * *heads;
            }
            Self::Rnn { units, .. } => *units = scale(*units),
            Self::Resnet { .. } | Self::Sequential { .. } | Self::External { .. } => return None,
        }
        Some(scaled)
    }

    /// Its size in a few characters, for names: `512-512`, `20`, `64×2`.
    pub fn size(&self) -> String {
        let list = |sizes: &[u64]| match sizes {
            [] => "linear".to_owned(),
            [first, .., last] if sizes.len() > 4 => {
                format!("{first}-…-{last} ({} layers)", sizes.len())
            }
            several => {
                let several: Vec<String> = several.iter().map(u64::to_string).collect();
                several.join("-")
            }
        };
        match self {
            Self::Mlp { hidden, .. } => list(hidden),
            Self::Cnn { channels, .. } => list(channels),
            Self::Resnet { depth, .. } => depth.to_string(),
            Self::TransformerEncoder { width, depth, .. }
            | Self::TransformerLm { width, depth, .. }
            | Self::Rnn {
                units: width,
                depth,
                ..
            } => format!("{width}×{depth}"),
            Self::Sequential { layers, .. } => format!("of {} layers", layers.len()),
            Self::External { name, .. } => name.clone(),
        }
    }
}

/// Stem, stages and shortcuts of a residual network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResnetStyle {
    /// For small images: a 3×3 stem, three stages, shortcuts without parameters (option A).
    #[default]
    Cifar,
    /// For large images: a 7×7 stem with pooling, four stages, projection shortcuts (option B).
    Imagenet,
}

/// A recurrent cell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cell {
    /// Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).
    #[default]
    Lstm,
    /// Gated recurrent unit (Cho et al. 2014).
    Gru,
}

/// A nonlinearity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(0, x)
    #[default]
    Relu,
    /// x·Φ(x)
    Gelu,
    /// tanh x
    Tanh,
    /// 1/(1+e⁻ˣ)
    Sigmoid,
}

impl Activation {
    fn gelu() -> Self {
        Self::Gelu
    }
}

/// How activations are normalised, with every hyperparameter. Each has a trainable scale and shift
/// for each feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Normalization {
    /// Not at all.
    None {},
    /// Over the batch and all positions (Ioffe & Szegedy 2015).
    Batch {
        /// Weight of the newest batch in the running statistics that evaluation uses.
        #[serde(default = "default_running_momentum")]
        #[schema(exclusive_minimum = 0.0, maximum = 1.0, default = 0.1)]
        momentum: f64,
        /// ε, added to the variance.
        #[serde(default = "default_norm_epsilon")]
        #[schema(exclusive_minimum = 0.0, maximum = 1.0, default = 1e-5)]
        epsilon: f64,
    },
    /// Over ghost batches: groups of `batch_size` examples within a batch (Hoffer et al. 2017).
    GhostBatch {
        /// Examples of a ghost batch.
        #[schema(minimum = 2, maximum = 16777216)]
        batch_size: u64,
        /// Weight of the newest batch in the running statistics that evaluation uses.
        #[serde(default = "default_running_momentum")]
        #[schema(exclusive_minimum = 0.0, maximum = 1.0, default = 0.1)]
        momentum: f64,
        /// ε, added to the variance.
        #[serde(default = "default_norm_epsilon")]
        #[schema(exclusive_minimum = 0.0, maximum = 1.0, default = 1e-5)]
        epsilon: f64,
    },
    /// Over groups of channels of one example (Wu & He 2018).
    Group {
        /// Groups; they divide the channels.
        #[serde(default = "default_groups")]
        #[schema(minimum = 1, maximum = 65536, default = 8)]
        groups: u64,
        /// ε, added to the variance.
        #[serde(default = "default_norm_epsilon")]
        #[schema(exclusive_minimum = 0.0, maximum = 1.0, default = 1e-5)]
        epsilon: f64,
    },
    /// Over the features of one position (Ba, Kiros & Hinton 2016).
    Layer {
        /// ε, added to the variance.
        #[serde(default = "default_norm_epsilon")]
        #[schema(exclusive_minimum = 0.0, maximum = 1.0, default = 1e-5)]
        epsilon: f64,
    },
}

fn default_running_momentum() -> f64 {
    0.1
}
fn default_norm_epsilon() -> f64 {
    1e-5
}
fn default_groups() -> u64 {
    8
}

impl Default for Normalization {
    fn default() -> Self {
        Self::None {}
    }
}

impl Normalization {
    /// Batch normalization with its usual hyperparameters.
    pub fn batch() -> Self {
        Self::Batch {
            momentum: default_running_momentum(),
            epsilon: default_norm_epsilon(),
        }
    }

    /// Layer normalization with its usual hyperparameter.
    pub fn layer() -> Self {
        Self::Layer {
            epsilon: default_norm_epsilon(),
        }
    }
}

/// How weights are drawn; all are normal with mean 0. Biases and shifts are 0 (the forget gate's is
/// 1), scales 1. Embeddings have variance 1/width, or 0.02² with `small_normal`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Initialisation {
    /// `he` in layers that a ReLU or GELU follows, `lecun` in all others.
    #[default]
    ByActivation,
    /// Variance 2/fan-in (He et al. 2015).
    He,
    /// Variance 1/fan-in (LeCun et al. 1998).
    Lecun,
    /// Variance 2/(fan-in + fan-out) (Glorot & Bengio 2010).
    Xavier,
    /// Standard deviation 0.02 (Radford et al. 2019).
    SmallNormal,
}

impl Initialisation {
    fn small_normal() -> Self {
        Self::SmallNormal
    }
}

/// One layer of a network. An image is channels × height × width, a sequence length × width.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "layer", rename_all = "snake_case", deny_unknown_fields)]
pub enum Layer {
    /// Wx + b on features, or on each position of a sequence.
    Linear {
        /// Width of the result.
        #[schema(minimum = 1)]
        units: u64,
        /// Whether there is a b.
        #[serde(default = "yes")]
        bias: bool,
    },
    /// A convolution over an image.
    Conv2d {
        /// Channels of the result.
        #[schema(minimum = 1)]
        channels: u64,
        /// Side of the kernel.
        #[serde(default = "three")]
        #[schema(minimum = 1, maximum = 1024, default = 3)]
        kernel: u64,
        /// Distance between positions.
        #[serde(default = "one")]
        #[schema(minimum = 1, maximum = 1024, default = 1)]
        stride: u64,
        /// Zeros added at each border. Default: ⌊(kernel − 1)/2⌋, which keeps the size at stride 1.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(maximum = 1024)]
        padding: Option<u64>,
        /// Whether each channel has a bias.
        #[serde(default = "yes")]
        bias: bool,
    },
    /// A normalization.
    Norm {
        /// Which.
        normalization: Normalization,
    },
    /// A nonlinearity.
    Activation {
        /// Which.
        function: Activation,
    },
    /// Drops units in training and scales the others up.
    Dropout {
        /// Probability of being dropped.
        #[schema(minimum = 0.0, exclusive_maximum = 1.0)]
        probability: f64,
    },
    /// The largest value of each window of an image.
    MaxPool2d {
        /// Side of the window.
        #[serde(default = "two")]
        #[schema(minimum = 1, maximum = 1024, default = 2)]
        kernel: u64,
        /// Distance between windows.
        #[serde(default = "two")]
        #[schema(minimum = 1, maximum = 1024, default = 2)]
        stride: u64,
        /// Border added at each side, less than half the window.
        #[serde(default)]
        #[schema(maximum = 512)]
        padding: u64,
    },
    /// The mean of each window of an image.
    AvgPool2d {
        /// Side of the window.
        #[serde(default = "two")]
        #[schema(minimum = 1, maximum = 1024, default = 2)]
        kernel: u64,
        /// Distance between windows.
        #[serde(default = "two")]
        #[schema(minimum = 1, maximum = 1024, default = 2)]
        stride: u64,
    },
    /// The mean of each channel of an image, as features.
    GlobalAvgPool {},
    /// An image or a sequence as one vector of features.
    Flatten {},
    /// A vector for each token.
    Embedding {
        /// Width of the vectors.
        #[schema(minimum = 1)]
        width: u64,
    },
    /// Adds a trainable vector for each position of a sequence.
    PositionEmbedding {},
    /// Cuts an image into square patches and maps each linearly to a vector.
    Patches {
        /// Side of a patch; it divides the height and the width.
        #[schema(minimum = 1, maximum = 1024)]
        size: u64,
        /// Width of the vectors.
        #[schema(minimum = 1)]
        width: u64,
    },
    /// The rows of an image as a sequence, top to bottom.
    Rows {},
    /// Multi-head self-attention with biases (Vaswani et al. 2017).
    SelfAttention {
        /// Heads; they divide the width.
        #[schema(minimum = 1, maximum = 1024)]
        heads: u64,
        /// Whether a position sees only itself and those before it.
        #[serde(default)]
        causal: bool,
    },
    /// A recurrent layer; the result is its state at each position.
    Recurrent {
        /// The cell.
        #[serde(default)]
        cell: Cell,
        /// Units of the state.
        #[schema(minimum = 1)]
        units: u64,
    },
    /// The mean over the positions of a sequence, as features.
    MeanOverSequence {},
    /// The last position of a sequence, as features.
    LastOfSequence {},
    /// Layers whose result is added to their input.
    Residual {
        /// First to last.
        #[schema(min_items = 1, no_recursion)]
        layers: Vec<Layer>,
        /// What the input passes through before the sum; empty for nothing.
        #[serde(default)]
        #[schema(no_recursion)]
        shortcut: Vec<Layer>,
    },
    /// Every `stride`-th row and column of an image, with channels of zeros added up to `channels`: the
    /// shortcut without parameters of He et al. 2016 (option A).
    Subsample {
        /// Distance between the positions kept.
        #[schema(minimum = 1, maximum = 1024)]
        stride: u64,
        /// Channels of the result.
        #[schema(minimum = 1)]
        channels: u64,
    },
    /// Multiplies each feature by a trainable factor that starts at 1: a network of this layer alone is the
    /// noisy quadratic model on the data set of that name.
    Scale {},
    /// A linear layer as wide as the data set's targets need: on features, or for a language model on
    /// each position.
    Output {},
    /// The output layer of a language model that shares the weights of its embedding, without a bias.
    Unembedding {},
}

fn yes() -> bool {
    true
}

impl Layer {
    /// Its name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Linear { .. } => "linear",
            Self::Conv2d { .. } => "conv2d",
            Self::Norm { .. } => "norm",
            Self::Activation { .. } => "activation",
            Self::Dropout { .. } => "dropout",
            Self::MaxPool2d { .. } => "max_pool2d",
            Self::AvgPool2d { .. } => "avg_pool2d",
            Self::GlobalAvgPool {} => "global_avg_pool",
            Self::Flatten {} => "flatten",
            Self::Embedding { .. } => "embedding",
            Self::PositionEmbedding {} => "position_embedding",
            Self::Patches { .. } => "patches",
            Self::Rows {} => "rows",
            Self::SelfAttention { .. } => "self_attention",
            Self::Recurrent { .. } => "recurrent",
            Self::MeanOverSequence {} => "mean_over_sequence",
            Self::LastOfSequence {} => "last_of_sequence",
            Self::Residual { .. } => "residual",
            Self::Subsample { .. } => "subsample",
            Self::Scale {} => "scale",
            Self::Output {} => "output",
            Self::Unembedding {} => "unembedding",
        }
    }
}
