//! Newtypes where a mix-up would cost: identifiers, batch sizes, bytes.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Declares an identifier newtype over a UUID (version 7 when made by the service).
macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
        )]
        #[serde(transparent)]
        #[schema(value_type = String, format = Uuid)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
    };
}

identifier!(
    /// Names a study.
    StudyId
);
identifier!(
    /// Names a probe.
    ProbeId
);
identifier!(
    /// Names one lease: one attempt at a probe by one worker.
    LeaseId
);
identifier!(
    /// Names a recommendation.
    RecommendationId
);
identifier!(
    /// Names a device of a host.
    DeviceId
);
identifier!(
    /// Names an uploaded data set.
    DatasetId
);

/// Examples per optimizer step.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(transparent)]
#[schema(value_type = u64, minimum = 1)]
pub struct BatchSize(pub u64);

impl BatchSize {
    /// As a real number, for arithmetic on curves.
    pub fn as_f64(self) -> f64 {
        self.0 as f64
    }
}

impl fmt::Display for BatchSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An amount of memory.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(transparent)]
#[schema(value_type = u64, minimum = 0)]
pub struct Bytes(pub u64);

impl Bytes {
    /// 2^20 bytes.
    pub const MIB: u64 = 1 << 20;
    /// 2^30 bytes.
    pub const GIB: u64 = 1 << 30;

    /// As a real number, for arithmetic on fits.
    pub fn as_f64(self) -> f64 {
        self.0 as f64
    }
}

impl fmt::Display for Bytes {
    /// For people: `412 MiB`, `2.50 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.as_f64();
        if self.0 >= Self::GIB {
            write!(f, "{:.2} GiB", bytes / Self::GIB as f64)
        } else if self.0 >= 10 * Self::MIB {
            write!(f, "{:.0} MiB", bytes / Self::MIB as f64)
        } else if self.0 >= Self::MIB {
            write!(f, "{:.1} MiB", bytes / Self::MIB as f64)
        } else {
            write!(f, "{:.0} KiB", bytes / 1024.0)
        }
    }
}
