//! The shapes of examples and of what layers make of them, without the batch axis.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The shape of one example, or of a layer's result for one example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Shape {
    /// A vector.
    Features {
        /// Numbers in it.
        width: u64,
    },
    /// An image, channels first.
    Image {
        /// Channels.
        channels: u64,
        /// Rows.
        height: u64,
        /// Columns.
        width: u64,
    },
    /// A sequence of vectors.
    Sequence {
        /// Positions.
        length: u64,
        /// Numbers at each.
        width: u64,
    },
    /// A sequence of tokens.
    Tokens {
        /// Positions.
        length: u64,
        /// Different tokens.
        vocabulary: u64,
    },
}

impl Shape {
    /// Numbers (or tokens) in one example. Saturates.
    pub fn numbers(&self) -> u64 {
        match *self {
            Self::Features { width } => width,
            Self::Image {
                channels,
                height,
                width,
            } => channels.saturating_mul(height).saturating_mul(width),
            Self::Sequence { length, width } => length.saturating_mul(width),
            Self::Tokens { length, .. } => length,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Features { width } => write!(f, "{width} features"),
            Self::Image {
                channels,
                height,
                width,
            } => write!(f, "an image of {channels}×{height}×{width}"),
            Self::Sequence { length, width } => {
                write!(f, "a sequence of {length} positions of width {width}")
            }
            Self::Tokens { length, vocabulary } => {
                write!(f, "{length} tokens out of {vocabulary}")
            }
        }
    }
}

/// What is to be predicted of an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Target {
    /// One of so many classes.
    Classes {
        /// Different classes.
        count: u64,
    },
    /// So many real numbers.
    Values {
        /// Numbers.
        count: u64,
    },
    /// At each position, the token that comes next.
    NextToken {
        /// Different tokens.
        vocabulary: u64,
    },
}

impl Target {
    /// What a network must give for one example whose tokens are `length` long.
    pub fn prediction(&self, length: u64) -> Shape {
        match *self {
            Self::Classes { count } | Self::Values { count } => Shape::Features { width: count },
            Self::NextToken { vocabulary } => Shape::Sequence {
                length,
                width: vocabulary,
            },
        }
    }

    /// Numbers predicted at one position.
    pub fn width(&self) -> u64 {
        match *self {
            Self::Classes { count } | Self::Values { count } => count,
            Self::NextToken { vocabulary } => vocabulary,
        }
    }

    /// The kind of task, for people.
    pub fn task(&self) -> &'static str {
        match self {
            Self::Classes { .. } => "classification",
            Self::Values { .. } => "regression",
            Self::NextToken { .. } => "language modelling",
        }
    }
}

/// What a data set is like, as far as a network and a plan need to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// The shape of one example.
    pub input: Shape,
    /// What is predicted.
    pub target: Target,
    /// Examples to train on.
    pub training_examples: u64,
    /// Examples to validate on.
    pub validation_examples: u64,
}
