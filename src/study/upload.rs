//! How an uploaded file is to be read.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The format of an uploaded file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UploadFormat {
    /// NumPy's archive of arrays (`numpy.savez`, compressed or not).
    Npz,
    /// Apache Parquet: a table with a column of targets.
    Parquet,
    /// Comma-separated values with a header line: a table with a column of targets.
    Csv,
    /// UTF-8 text, for language models.
    Text,
}

impl UploadFormat {
    /// The name used in JSON and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Npz => "npz",
            Self::Parquet => "parquet",
            Self::Csv => "csv",
            Self::Text => "text",
        }
    }
}

/// What is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UploadTask {
    /// One of several classes.
    Classification,
    /// Real numbers.
    Regression,
}

/// What the axes of an array of more than two dimensions mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ArrayLayout {
    /// Images: examples × channels × height × width.
    ChannelsFirst,
    /// Images: examples × height × width × channels.
    ChannelsLast,
    /// Sequences: examples × length × width.
    Sequence,
    /// No more than numbers: every example is one vector.
    Flat,
}

/// How an uploaded file is to be read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadOptions {
    /// Its format.
    pub format: UploadFormat,
    /// The column (CSV, Parquet) or array (NPZ) to be predicted.
    pub target: Option<String>,
    /// The array of inputs (NPZ).
    pub inputs: Option<String>,
    /// What is predicted.
    pub task: Option<UploadTask>,
    /// What the axes of the inputs mean (NPZ).
    pub layout: Option<ArrayLayout>,
    /// Columns that are left out (CSV, Parquet).
    pub drop: Vec<String>,
    /// The characters of a text, in the order of their tokens; without them its bytes are the tokens.
    pub vocabulary: Option<String>,
    /// The share of the examples that is kept for validation, unless the file says which.
    pub validation_fraction: f64,
    /// Draws the examples that are kept for validation.
    pub split_seed: u64,
}

/// What a file may be at most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UploadLimits {
    /// Bytes of its stored form.
    pub max_content_bytes: u64,
    /// Columns of a table.
    pub max_columns: u64,
    /// Classes.
    pub max_classes: u64,
}
