//! The model families, and what they are made of.

use serde_json::json;

use super::parameters::{
    PLAYBOOK, choice, component, flag, fraction, layer_list, name, normalization, optional,
    positive, required_choice, whole, wholes,
};
use super::{
    Component, KnownResult, ModelFamily, ModelSize, Parameter, Provenance, ReferenceResult,
};

const HE_2015: Provenance = Provenance {
    source: "He, Zhang, Ren & Sun 2015, Delving Deep into Rectifiers (initialisation)",
    url: "https://arxiv.org/abs/1502.01852",
};
const HE_2016: Provenance = Provenance {
    source: "He, Zhang, Ren & Sun 2016, Deep Residual Learning for Image Recognition",
    url: "https://arxiv.org/abs/1512.03385",
};
const LECUN_1998: Provenance = Provenance {
    source: "LeCun, Bottou, Bengio & Haffner 1998, Gradient-Based Learning Applied to Document Recognition",
    url: "https://doi.org/10.1109/5.726791",
};
const EFFICIENT_BACKPROP: Provenance = Provenance {
    source: "LeCun, Bottou, Orr & Müller 1998, Efficient BackProp, equation 16",
    url: "https://doi.org/10.1007/3-540-49430-8_2",
};
const GLOROT: Provenance = Provenance {
    source: "Glorot & Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, equation 16",
    url: "https://proceedings.mlr.press/v9/glorot10a.html",
};
const DROPOUT: Provenance = Provenance {
    source: "Srivastava et al. 2014, Dropout",
    url: "https://jmlr.org/papers/v15/srivastava14a.html",
};
const BATCH_NORM: Provenance = Provenance {
    source: "Ioffe & Szegedy 2015, Batch Normalization",
    url: "https://arxiv.org/abs/1502.03167",
};
const HOFFER: Provenance = Provenance {
    source: "Hoffer, Hubara & Soudry 2017, Train longer, generalize better, algorithm 1",
    url: "https://arxiv.org/abs/1705.08741",
};
const GROUP_NORM: Provenance = Provenance {
    source: "Wu & He 2018, Group Normalization",
    url: "https://arxiv.org/abs/1803.08494",
};
const LAYER_NORM: Provenance = Provenance {
    source: "Ba, Kiros & Hinton 2016, Layer Normalization",
    url: "https://arxiv.org/abs/1607.06450",
};
const VASWANI: Provenance = Provenance {
    source: "Vaswani et al. 2017, Attention Is All You Need",
    url: "https://arxiv.org/abs/1706.03762",
};
const DOSOVITSKIY: Provenance = Provenance {
    source: "Dosovitskiy et al. 2021, An Image is Worth 16x16 Words",
    url: "https://arxiv.org/abs/2010.11929",
};
const BEYER: Provenance = Provenance {
    source: "Beyer, Zhai & Kolesnikov 2022, Better plain ViT baselines for ImageNet-1k",
    url: "https://arxiv.org/abs/2205.01580",
};
const GPT_2: Provenance = Provenance {
    source: "Radford et al. 2019, Language Models are Unsupervised Multitask Learners",
    url: "https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
};
const LSTM: Provenance = Provenance {
    source: "Hochreiter & Schmidhuber 1997, Long Short-Term Memory; Gers, Schmidhuber & Cummins 2000 (forget gate)",
    url: "https://doi.org/10.1162/neco.1997.9.8.1735",
};
const GRU: Provenance = Provenance {
    source: "Cho et al. 2014, Learning Phrase Representations using RNN Encoder-Decoder",
    url: "https://arxiv.org/abs/1406.1078",
};
const ZAREMBA: Provenance = Provenance {
    source: "Zaremba, Sutskever & Vinyals 2014, Recurrent Neural Network Regularization, table 1",
    url: "https://arxiv.org/abs/1409.2329",
};

const NOISY_QUADRATIC: Provenance = Provenance {
    source: "Zhang et al. 2019, Which Algorithmic Choices Matter at Which Batch Sizes? (noisy quadratic model)",
    url: "https://arxiv.org/abs/1907.04164",
};

const ACTIVATIONS: [&str; 4] = ["relu", "gelu", "tanh", "sigmoid"];
const INITIALISATIONS: [&str; 5] = ["by_activation", "he", "lecun", "xavier", "small_normal"];
const BY_ACTIVATION: &str = "weights ~ N(0, 2/fan-in) where a relu or gelu follows, else \
                             N(0, 1/fan-in); biases 0";
const SMALL_NORMAL: &str = "weights and embeddings ~ N(0, 0.02²); biases 0";

fn activation(summary: &'static str, default: &'static str) -> Parameter {
    choice("activation", summary, default, &ACTIVATIONS)
}

fn dropout(summary: &'static str) -> Parameter {
    fraction("dropout", summary, Some(0.0))
}

fn initialisation(default: &'static str) -> Parameter {
    choice(
        "initialisation",
        "How weights are drawn.",
        default,
        &INITIALISATIONS,
    )
}

fn batch_norm() -> serde_json::Value {
    json!({"kind": "batch", "momentum": 0.1, "epsilon": 1e-5})
}

fn layer_norm() -> serde_json::Value {
    json!({"kind": "layer", "epsilon": 1e-5})
}

fn sizes(
    small: serde_json::Value,
    medium: serde_json::Value,
    large: serde_json::Value,
) -> Vec<ModelSize> {
    [("S", small), ("M", medium), ("L", large)]
        .into_iter()
        .map(|(name, parameters)| ModelSize { name, parameters })
        .collect()
}

fn transformer_parameters(patches: bool) -> Vec<Parameter> {
    let mut parameters = vec![
        whole(
            "width",
            "Width of the residual stream.",
            64,
            1,
            Some(65_536),
        ),
        whole("depth", "Blocks.", 2, 1, Some(128)),
        whole(
            "heads",
            "Attention heads; they divide the width.",
            4,
            1,
            Some(1024),
        ),
        whole(
            "mlp_ratio",
            "Hidden units of the feed-forward part over the width.",
            4,
            1,
            Some(64),
        ),
    ];
    if patches {
        parameters.push(whole(
            "patch_size",
            "Side of a patch, where the examples are images; it divides their height and width.",
            2,
            1,
            Some(1024),
        ));
    }
    parameters.extend([
        activation("Of the feed-forward part.", "gelu"),
        normalization(
            "Before attention, before the feed-forward part, and before the output.",
            Some(layer_norm()),
        ),
        dropout(
            "Probability of dropping after attention and after the feed-forward part in training.",
        ),
        initialisation(if patches {
            "by_activation"
        } else {
            "small_normal"
        }),
    ]);
    parameters
}

/// The digits, as the twelve runs behind `docs/methods.md` found them: the steps of a tuned learning rate.
fn digits() -> ReferenceResult {
    ReferenceResult {
        what: "64-64-10 with ReLU on digits: validation cross-entropy of 0.20 in 27 steps of plain SGD at batch size 64",
        dataset: json!({"builtin": "digits"}),
        model: json!({"family": "mlp", "hidden": [64]}),
        optimizer: json!({"family": "sgd", "learning_rate": DIGITS_LEARNING_RATE}),
        batch_size: 64,
        metric: "validation_cross_entropy",
        target: 0.20,
        steps: 27.0,
        within_factor: 1.5,
        provenance: Provenance {
            source: "this project's protocol on the digits of Alpaydin & Kaynak 1998, by another program: \
                     geometric mean of twelve independent searches, which scatter by 4 to 11%",
            url: "https://doi.org/10.24432/C50P49",
        },
    }
}

/// Near the middle of the learning rates that need the fewest steps at batch size 64.
const DIGITS_LEARNING_RATE: f64 = 0.7;

pub(super) fn families() -> Vec<ModelFamily> {
    vec![
        ModelFamily {
            name: "mlp",
            summary: "A multilayer perceptron: linear layers, each followed by normalization, \
                      activation and dropout.",
            parameters: vec![
                wholes(
                    "hidden",
                    "Units of each hidden layer, first to last; empty for a linear model.",
                    &[64],
                ),
                activation("What follows each hidden layer.", "relu"),
                normalization(
                    "Between a hidden layer and its activation.",
                    Some(json!({"kind": "none"})),
                ),
                dropout("Probability that a hidden unit is dropped in training."),
                initialisation("by_activation"),
            ],
            sizes: sizes(
                json!({"hidden": [64]}),
                json!({"hidden": [512, 512]}),
                json!({"hidden": [2048, 2048, 2048]}),
            ),
            trainable_parameters: "Σ over layers of inputs·outputs + outputs, from the features \
                                   through the hidden layers to the outputs",
            initialisation: BY_ACTIVATION,
            first_optimizer: "adam",
            reads: "features; images and sequences as one vector",
            known_result: Some(KnownResult {
                what: "784-300-100-10 on MNIST: 3.05% test error without distortions",
                provenance: LECUN_1998,
            }),
            references: vec![digits()],
            provenance: vec![
                Provenance {
                    source: "Rumelhart, Hinton & Williams 1986, Learning representations by \
                             back-propagating errors",
                    url: "https://doi.org/10.1038/323533a0",
                },
                HE_2015,
                DROPOUT,
            ],
        },
        ModelFamily {
            name: "cnn",
            summary: "A convolutional network: stages of convolution, normalization and activation \
                      with 2×2 max pooling between, then the mean over positions.",
            parameters: vec![
                wholes(
                    "channels",
                    "Channels of each stage, first to last.",
                    &[32, 64],
                ),
                whole(
                    "convolutions",
                    "Convolutions of each stage.",
                    1,
                    1,
                    Some(16),
                ),
                whole("kernel", "Side of a convolution's kernel.", 3, 1, Some(15)),
                activation(
                    "What follows each convolution and its normalization.",
                    "relu",
                ),
                normalization(
                    "Between a convolution and its activation; without one, convolutions have biases.",
                    Some(batch_norm()),
                ),
                dropout("Probability that a unit is dropped before the output layer in training."),
                initialisation("by_activation"),
            ],
            sizes: sizes(
                json!({"channels": [16, 32]}),
                json!({"channels": [32, 64, 128], "convolutions": 2}),
                json!({"channels": [64, 128, 256, 512], "convolutions": 2}),
            ),
            trainable_parameters: "Σ over convolutions of kernel²·inputs·outputs + 2·outputs, and \
                                   channels·outputs + outputs of the output layer",
            initialisation: BY_ACTIVATION,
            first_optimizer: "sgd_nesterov",
            reads: "images",
            known_result: Some(KnownResult {
                what: "LeNet-5, its ancestor, on MNIST: 0.95% test error without distortions",
                provenance: LECUN_1998,
            }),
            references: vec![],
            provenance: vec![LECUN_1998, BATCH_NORM, HE_2015],
        },
        ModelFamily {
            name: "resnet",
            summary: "A residual network: `cifar` for small images (3×3 stem, three stages, shortcuts \
                      without parameters), `imagenet` for large ones (7×7 stem, four stages, \
                      projections).",
            parameters: vec![
                choice(
                    "style",
                    "Stem, stages and shortcuts.",
                    "cifar",
                    &["cifar", "imagenet"],
                ),
                whole(
                    "depth",
                    "Weighted layers: 6n + 2 for cifar (8, 14, 20, 32, 44, 56, 110); 18, 34 or 50 for \
                     imagenet.",
                    8,
                    8,
                    Some(1202),
                ),
                whole(
                    "width_factor",
                    "Multiplies the channels of every stage.",
                    1,
                    1,
                    Some(64),
                ),
                normalization("After each convolution.", Some(batch_norm())),
                activation(
                    "After each normalization but a block's last, and after each sum.",
                    "relu",
                ),
                dropout("Probability that a unit is dropped before the output layer in training."),
                initialisation("by_activation"),
            ],
            sizes: sizes(
                json!({"depth": 8}),
                json!({"depth": 20}),
                json!({"style": "imagenet", "depth": 50}),
            ),
            trainable_parameters: "cifar on 32×32×3 and 10 classes: 269,722 at depth 20; imagenet on \
                                   1000 classes: 11,689,512 / 21,797,672 / 25,557,032 at depth 18 / 34 / 50",
            initialisation: BY_ACTIVATION,
            first_optimizer: "sgd_nesterov",
            reads: "images",
            known_result: Some(KnownResult {
                what: "depth 20 on CIFAR-10: 8.75% test error (32: 7.51%, 56: 6.97%, 110: 6.43%); depth 50 \
                       on ImageNet: 22.85% top-1 error with ten crops",
                provenance: HE_2016,
            }),
            references: vec![],
            provenance: vec![HE_2016, BATCH_NORM, HOFFER, GROUP_NORM, HE_2015],
        },
        ModelFamily {
            name: "transformer_encoder",
            summary: "A transformer that classifies tokens, sequences of vectors, or the patches of \
                      an image (ViT). Normalization comes first in each block; the output reads the mean \
                      over positions.",
            parameters: transformer_parameters(true),
            sizes: sizes(
                json!({"width": 64, "depth": 2, "heads": 4}),
                json!({"width": 192, "depth": 12, "heads": 3}),
                json!({"width": 384, "depth": 12, "heads": 6}),
            ),
            trainable_parameters: "depth·((4 + 2·mlp_ratio)·width² + (9 + mlp_ratio)·width) + 2·width, and \
                                   those of the embedding, the positions and the output layer",
            initialisation: BY_ACTIVATION,
            first_optimizer: "adamw",
            reads: "images, sequences or tokens",
            known_result: Some(KnownResult {
                what: "ViT-S/16 (width 384, depth 12, 6 heads, patches of 16) on ImageNet: 76.5% top-1 \
                       accuracy in 90 epochs, with augmentation",
                provenance: BEYER,
            }),
            references: vec![],
            provenance: vec![VASWANI, DOSOVITSKIY, BEYER, LAYER_NORM],
        },
        ModelFamily {
            name: "transformer_lm",
            summary: "A causal transformer that predicts the next token; its output layer shares the \
                      weights of the embedding.",
            parameters: transformer_parameters(false),
            sizes: sizes(
                json!({"width": 64, "depth": 2, "heads": 4}),
                json!({"width": 256, "depth": 6, "heads": 8}),
                json!({"width": 768, "depth": 12, "heads": 12}),
            ),
            trainable_parameters: "(vocabulary + length)·width + depth·((4 + 2·mlp_ratio)·width² + \
                                   (9 + mlp_ratio)·width) + 2·width; 124,439,808 for GPT-2 small",
            initialisation: SMALL_NORMAL,
            first_optimizer: "adamw",
            reads: "text",
            known_result: Some(KnownResult {
                what: "GPT-2 small (width 768, depth 12) on WikiText-103, without training on it: \
                       perplexity 37.5",
                provenance: GPT_2,
            }),
            references: vec![],
            provenance: vec![GPT_2, VASWANI],
        },
        ModelFamily {
            name: "rnn",
            summary: "A recurrent network: it classifies from its last state, or predicts the next \
                      token from each. It reads images row by row.",
            parameters: vec![
                choice("cell", "The recurrent cell.", "lstm", &["lstm", "gru"]),
                whole("units", "Units of the state.", 64, 1, Some(65_536)),
                whole(
                    "depth",
                    "Recurrent layers, one on the other.",
                    1,
                    1,
                    Some(32),
                ),
                whole(
                    "embedding",
                    "Width of the embedding, where the examples are tokens.",
                    64,
                    1,
                    Some(65_536),
                ),
                dropout("Probability of dropping after each recurrent layer in training."),
                initialisation("by_activation"),
            ],
            sizes: sizes(
                json!({"units": 64}),
                json!({"units": 256, "depth": 2, "embedding": 128}),
                json!({"units": 650, "depth": 2, "embedding": 650}),
            ),
            trainable_parameters: "Σ over layers of gates·(inputs·units + units² + 2·units) with 4 gates \
                                   for lstm and 3 for gru, and those of the embedding and the output layer",
            initialisation: "weights ~ N(0, 1/fan-in); biases 0, that of an LSTM's forget gate 1",
            first_optimizer: "adam",
            reads: "text, sequences, or the rows of images",
            known_result: Some(KnownResult {
                what: "two LSTM layers of 650 units with dropout on Penn Treebank words: test perplexity 82.7",
                provenance: ZAREMBA,
            }),
            references: vec![],
            provenance: vec![LSTM, GRU, ZAREMBA],
        },
        ModelFamily {
            name: "sequential",
            summary: "A network of one's own: a list of layers, residual blocks among them. Every \
                      mismatch of shapes is named by its layer before anything runs.",
            parameters: vec![
                layer_list(
                    "layers",
                    "First to last; the last must give what the targets need, as \"output\" does.",
                    None,
                ),
                initialisation("by_activation"),
            ],
            sizes: vec![],
            trainable_parameters: "the sum over its layers",
            initialisation: BY_ACTIVATION,
            first_optimizer: "adam",
            reads: "whatever its first layer reads",
            known_result: None,
            references: vec![],
            provenance: vec![],
        },
        ModelFamily {
            name: "external",
            summary: "A model that the service knows by name only: the program of a runner other than burn has it.",
            parameters: vec![
                name("name", "Its name, with whatever tells its size."),
                optional(whole(
                    "parameters",
                    "Trainable parameters; left out where they are not known.",
                    None,
                    1,
                    None,
                )),
            ],
            sizes: vec![],
            trainable_parameters: "as the study tells them",
            initialisation: "as its program draws them",
            first_optimizer: "adam",
            reads: "whatever its program reads",
            known_result: None,
            references: vec![],
            provenance: vec![],
        },
    ]
}

pub(super) fn normalizations() -> Vec<Component> {
    let epsilon = || {
        positive(
            "epsilon",
            "ε, added to the variance.",
            Some(1e-5),
            Some(1.0),
        )
    };
    let momentum = || {
        positive(
            "momentum",
            "Weight of the newest batch in the running statistics that evaluation uses.",
            Some(0.1),
            Some(1.0),
        )
    };
    vec![
        component("none", "Nothing is normalised.", vec![], vec![]),
        component(
            "batch",
            "Over the batch and all positions; features and images. The running variance is of \
             unbiased variances.",
            vec![momentum(), epsilon()],
            vec![BATCH_NORM],
        ),
        component(
            "ghost_batch",
            "Over groups of examples within a batch, so that the batch size and the statistics are \
             separate choices; equal to \"batch\" when the group is the batch.",
            vec![
                whole(
                    "batch_size",
                    "Examples of a group; best a divisor of every batch size compared.",
                    None,
                    2,
                    Some(1 << 24),
                ),
                momentum(),
                epsilon(),
            ],
            vec![HOFFER, PLAYBOOK],
        ),
        component(
            "group",
            "Over groups of channels of one example; features and images.",
            vec![
                whole(
                    "groups",
                    "Groups; they divide the channels.",
                    8,
                    1,
                    Some(65_536),
                ),
                epsilon(),
            ],
            vec![GROUP_NORM],
        ),
        component(
            "layer",
            "Over the features of one position; features and sequences.",
            vec![epsilon()],
            vec![LAYER_NORM],
        ),
    ]
}

pub(super) fn initialisations() -> Vec<Component> {
    vec![
        component(
            "by_activation",
            "\"he\" in layers that a relu or gelu follows, \"lecun\" in all others.",
            vec![],
            vec![HE_2015, EFFICIENT_BACKPROP],
        ),
        component(
            "he",
            "Normal with variance 2/fan-in.",
            vec![],
            vec![HE_2015],
        ),
        component(
            "lecun",
            "Normal with variance 1/fan-in.",
            vec![],
            vec![EFFICIENT_BACKPROP],
        ),
        component(
            "xavier",
            "Normal with variance 2/(fan-in + fan-out).",
            vec![],
            vec![GLOROT],
        ),
        component(
            "small_normal",
            "Normal with standard deviation 0.02.",
            vec![],
            vec![GPT_2],
        ),
    ]
}

pub(super) fn layers() -> Vec<Component> {
    let units = || whole("units", "Width of the result.", None, 1, None);
    let bias = || flag("bias", "Whether a bias is added.", true);
    let kernel = |default| whole("kernel", "Side of the window.", default, 1, Some(1024));
    let stride = |default| {
        whole(
            "stride",
            "Distance between positions.",
            default,
            1,
            Some(1024),
        )
    };
    vec![
        component(
            "linear",
            "Wx + b on features, or on each position of a sequence.",
            vec![units(), bias()],
            vec![],
        ),
        component(
            "conv2d",
            "A convolution over an image.",
            vec![
                whole("channels", "Channels of the result.", None, 1, None),
                kernel(3),
                stride(1),
                optional(whole(
                    "padding",
                    "Zeros added at each border; left out, ⌊(kernel − 1)/2⌋, which keeps the size at stride 1.",
                    None,
                    0,
                    Some(1024),
                )),
                bias(),
            ],
            vec![LECUN_1998],
        ),
        component(
            "norm",
            "A normalization.",
            vec![normalization("Which.", None)],
            vec![],
        ),
        component(
            "activation",
            "A nonlinearity.",
            vec![required_choice("function", "Which.", &ACTIVATIONS)],
            vec![],
        ),
        component(
            "dropout",
            "Drops units in training and scales the others up.",
            vec![fraction(
                "probability",
                "Probability of being dropped.",
                None,
            )],
            vec![DROPOUT],
        ),
        component(
            "max_pool2d",
            "The largest value of each window of an image.",
            vec![
                kernel(2),
                stride(2),
                whole(
                    "padding",
                    "Border added at each side, at most half of the window.",
                    0,
                    0,
                    Some(512),
                ),
            ],
            vec![],
        ),
        component(
            "avg_pool2d",
            "The mean of each window of an image.",
            vec![kernel(2), stride(2)],
            vec![],
        ),
        component(
            "global_avg_pool",
            "The mean of each channel of an image, as features.",
            vec![],
            vec![],
        ),
        component(
            "flatten",
            "An image or a sequence as one vector.",
            vec![],
            vec![],
        ),
        component(
            "embedding",
            "A vector for each token.",
            vec![whole("width", "Width of the vectors.", None, 1, None)],
            vec![],
        ),
        component(
            "position_embedding",
            "Adds a trainable vector for each position of a sequence.",
            vec![],
            vec![],
        ),
        component(
            "patches",
            "Cuts an image into square patches and maps each linearly to a vector.",
            vec![
                whole(
                    "size",
                    "Side of a patch; it divides the height and the width.",
                    None,
                    1,
                    Some(1024),
                ),
                whole("width", "Width of the vectors.", None, 1, None),
            ],
            vec![DOSOVITSKIY],
        ),
        component(
            "rows",
            "The rows of an image as a sequence, top to bottom.",
            vec![],
            vec![],
        ),
        component(
            "self_attention",
            "Multi-head self-attention with biases.",
            vec![
                whole(
                    "heads",
                    "Heads; they divide the width.",
                    None,
                    1,
                    Some(1024),
                ),
                flag(
                    "causal",
                    "Whether a position sees only itself and those before it.",
                    false,
                ),
            ],
            vec![VASWANI],
        ),
        component(
            "recurrent",
            "A recurrent layer; the result is its state at each position.",
            vec![
                choice("cell", "The cell.", "lstm", &["lstm", "gru"]),
                units(),
            ],
            vec![LSTM, GRU],
        ),
        component(
            "mean_over_sequence",
            "The mean over the positions of a sequence, as features.",
            vec![],
            vec![],
        ),
        component(
            "last_of_sequence",
            "The last position of a sequence, as features.",
            vec![],
            vec![],
        ),
        component(
            "residual",
            "Layers whose result is added to their input.",
            vec![
                layer_list("layers", "First to last.", None),
                layer_list(
                    "shortcut",
                    "What the input passes through before the sum; empty for nothing.",
                    Some(json!([])),
                ),
            ],
            vec![HE_2016],
        ),
        component(
            "subsample",
            "Every stride-th row and column of an image, with channels of zeros added: the shortcut \
             without parameters (option A).",
            vec![
                whole(
                    "stride",
                    "Distance between the positions kept.",
                    None,
                    1,
                    Some(1024),
                ),
                whole("channels", "Channels of the result.", None, 1, None),
            ],
            vec![HE_2016],
        ),
        component(
            "scale",
            "Multiplies each feature by a trainable factor that starts at 1: alone, it is the noisy quadratic \
             model on the data set of that name.",
            vec![],
            vec![NOISY_QUADRATIC],
        ),
        component(
            "output",
            "A linear layer as wide as the data set's targets need.",
            vec![],
            vec![],
        ),
        component(
            "unembedding",
            "The output layer of a language model that shares the weights of its embedding.",
            vec![],
            vec![GPT_2],
        ),
    ]
}
