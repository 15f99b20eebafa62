//! Who may do what: access tokens, their scopes, and limits on guesses and on requests.
//!
//! A token is `trialhead_<id>_<secret>`. The id finds its row, and the secret (32 random bytes) is compared by its
//! SHA-256 in constant time. It knows nothing of HTTP; `api` turns a [`Refused`] into an answer.

mod buckets;
pub mod limiter;
pub mod listing;
pub mod requests;
pub mod tokens;
pub mod verifier;

pub use buckets::Party;
pub use limiter::{Attempt, FailureLimiter};
pub use requests::{RequestLimiter, TooMany, UnderWay};
pub use tokens::{NewToken, TokenText, create};
pub use verifier::{Identity, Refused, Verifier};

use std::fmt;
use std::str::FromStr;

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Reading studies, answers, data sets and metrics.
    Read,
    /// Creating, changing, cancelling and deleting.
    Write,
    /// Running probes: leases, and the contents of data sets.
    Work,
    /// Everything.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Work, Self::Admin];

    /// The name stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Work => "work",
            Self::Admin => "admin",
        }
    }

    /// The scope of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == name)
    }

    /// Whether a token with these scopes may do what needs this one.
    pub fn is_in(self, scopes: &[Self]) -> bool {
        scopes.contains(&self) || scopes.contains(&Self::Admin)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::parse(name)
            .ok_or_else(|| format!("{name:?} is no scope: use read, write, work or admin"))
    }
}

/// Whether a text can name a project: 1 to 64 letters, digits, dots, dashes and underscores.
pub fn is_project_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_implies_every_scope_and_no_other_implies_any() {
        for needed in Scope::ALL {
            for had in Scope::ALL {
                assert_eq!(
                    needed.is_in(&[had]),
                    had == needed || had == Scope::Admin,
                    "{needed} with {had}"
                );
            }
            assert!(!needed.is_in(&[]));
        }
    }

    #[test]
    fn a_scope_is_read_back_from_its_name() {
        for scope in Scope::ALL {
            assert_eq!(scope.as_str().parse(), Ok(scope));
        }
        assert!("root".parse::<Scope>().is_err());
        assert!("Read".parse::<Scope>().is_err());
    }

    #[test]
    fn names_of_projects_are_plain() {
        assert!(is_project_name("vision-2.0_a"));
        for bad in ["", "a b", "a/b", "ä", "a\n", &"x".repeat(65)] {
            assert!(!is_project_name(bad), "{bad:?}");
        }
    }
}
