//! The data sets that need no upload.

use super::parameters::{not_negative, whole};
use super::{DatasetEntry, Parameter, Provenance};

/// The largest seed: what every JSON reader holds exactly.
const MAX_SEED: u64 = (1 << 53) - 1;

fn seed() -> Parameter {
    whole("seed", "Seeds the generator.", 0, 0, Some(MAX_SEED))
}

fn examples(default: u64) -> Parameter {
    whole(
        "examples",
        "Training examples; a quarter as many to validate, 1 to 2000.",
        default,
        1,
        None,
    )
}

pub(super) fn datasets() -> Vec<DatasetEntry> {
    vec![
        DatasetEntry {
            name: "digits",
            summary: "1797 handwritten digits of 8×8 pixels: 1437 to train, 360 to validate.",
            task: "classification",
            parameters: vec![],
            preprocessing: "pixel/16, then less the mean and over the standard deviation of all \
                            training pixels",
            licence: "CC-BY-4.0",
            provenance: vec![Provenance {
                source: "Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI \
                         Machine Learning Repository; its test part as scikit-learn distributes it",
                url: "https://doi.org/10.24432/C50P49",
            }],
        },
        DatasetEntry {
            name: "synthetic",
            summary: "Gaussian clusters, one a class, made from a seed; their Bayes error is known. \
                      Held in memory as 4-byte numbers, which count towards the memory of training.",
            task: "classification",
            parameters: vec![
                examples(10_000),
                whole("features", "Features of an example.", 784, 1, None),
                whole("classes", "Classes.", 10, 2, None),
                seed(),
            ],
            preprocessing: "none: each feature has a variance of about 1",
            licence: "none needed: made by this program",
            provenance: vec![Provenance {
                source: "Hastie, Tibshirani & Friedman 2009, The Elements of Statistical Learning, \
                         section 4.3 (Gaussian classes with a common covariance)",
                url: "https://hastie.su.domains/ElemStatLearn/",
            }],
        },
        DatasetEntry {
            name: "synthetic_images",
            summary: "The same clusters in the space of images, for networks that read images.",
            task: "classification",
            parameters: vec![
                examples(10_000),
                whole("channels", "Channels of an image.", 3, 1, None),
                whole("height", "Rows of an image.", 32, 1, None),
                whole("width", "Columns of an image.", 32, 1, None),
                whole("classes", "Classes.", 10, 2, None),
                seed(),
            ],
            preprocessing: "none: each pixel has a variance of about 1",
            licence: "none needed: made by this program",
            provenance: vec![],
        },
        DatasetEntry {
            name: "linear_teacher",
            summary: "A linear function of normal features plus normal noise: no model has a mean squared \
                      error below the variance of the noise.",
            task: "regression",
            parameters: vec![
                examples(10_000),
                whole("features", "Features of an example.", 32, 1, None),
                whole("outputs", "Numbers to be predicted.", 1, 1, None),
                not_negative(
                    "noise_deviation",
                    "Standard deviation of the noise; that of the function is 1.",
                    0.1,
                    1000.0,
                ),
                seed(),
            ],
            preprocessing: "none: each feature has a variance of 1",
            licence: "none needed: made by this program",
            provenance: vec![],
        },
        DatasetEntry {
            name: "noisy_quadratic",
            summary: "The noisy quadratic model as a regression: with a network of the layer \"scale\" alone the \
                      expected loss is dimensions/2 + ½Σhᵢθᵢ² with hᵢ = 1/i, from θ = 1.",
            task: "regression",
            parameters: vec![
                examples(10_000),
                whole("dimensions", "Parameters of the quadratic.", 1000, 1, None),
                seed(),
            ],
            preprocessing: "none",
            licence: "none needed: made by this program",
            provenance: vec![Provenance {
                source: "Zhang et al. 2019, Which Algorithmic Choices Matter at Which Batch Sizes? Insights From \
                         a Noisy Quadratic Model",
                url: "https://arxiv.org/abs/1907.04164",
            }],
        },
        DatasetEntry {
            name: "markov_text",
            summary: "Text in which each token depends on the tokens just before it: no model has a \
                      cross-entropy below its entropy rate, which is known.",
            task: "language modelling",
            parameters: vec![
                examples(2000),
                whole(
                    "sequence_length",
                    "Tokens of an example.",
                    32,
                    1,
                    Some(65_536),
                ),
                whole("vocabulary", "Different tokens.", 16, 2, Some(1024)),
                whole(
                    "order",
                    "Tokens that the next one depends on.",
                    1,
                    1,
                    Some(4),
                ),
                seed(),
            ],
            preprocessing: "none",
            licence: "none needed: made by this program",
            provenance: vec![Provenance {
                source: "Shannon 1948, A Mathematical Theory of Communication, section 7 (the entropy of a source)",
                url: "https://doi.org/10.1002/j.1538-7305.1948.tb01338.x",
            }],
        },
    ]
}
