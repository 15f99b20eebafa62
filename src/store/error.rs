//! What can go wrong with the database, with an inside and an outside.

use diesel::result::{DatabaseErrorKind, Error as DieselError};

/// Why the database could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached just now: worth trying again.
    #[error("the database cannot be reached: {0}")]
    Unavailable(String),
    /// What it holds cannot be read by this version.
    #[error("stored data of {what} cannot be read: {why}")]
    Unreadable {
        /// Which row.
        what: String,
        /// Why.
        why: String,
    },
    /// Anything else: a defect of ours.
    #[error("database: {0}")]
    Other(DieselError),
}

impl From<DieselError> for StoreError {
    fn from(error: DieselError) -> Self {
        if is_unavailable(&error) {
            Self::Unavailable(error.to_string())
        } else {
            Self::Other(error)
        }
    }
}

/// Whether the error is of the connection or of a server shutting down or full, not of the statement.
fn is_unavailable(error: &DieselError) -> bool {
    match error {
        DieselError::BrokenTransactionManager => true,
        DieselError::DatabaseError(DatabaseErrorKind::ClosedConnection, _) => true,
        DieselError::DatabaseError(DatabaseErrorKind::UnableToSendCommand, _) => true,
        DieselError::DatabaseError(DatabaseErrorKind::Unknown, information) => {
            let message = information.message();
            [
                "terminating connection",
                "the database system is",
                "connection closed",
                "could not extend file",
                "could not write",
                "No space left on device",
                "statement timeout",
                "too many clients",
                "error communicating with the server",
            ]
            .iter()
            .any(|part| message.contains(part))
        }
        _ => false,
    }
}

impl StoreError {
    /// Whether a short wait may mend it: a lost connection, a deadlock, a serialisation failure.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_) => true,
            Self::Other(DieselError::DatabaseError(DatabaseErrorKind::SerializationFailure, _)) => {
                true
            }
            Self::Other(DieselError::DatabaseError(_, information)) => {
                information.message().contains("deadlock detected")
            }
            _ => false,
        }
    }

    /// For a stored value that this version cannot read.
    pub(crate) fn unreadable(what: impl ToString, why: impl ToString) -> Self {
        Self::Unreadable {
            what: what.to_string(),
            why: why.to_string(),
        }
    }
}
