//! Checks presented tokens against the database. One that was let in is taken as read for a few seconds, so that a worker's
//! heartbeats cost no query each; a revocation takes effect within that time. After it the token is looked up again, but
//! is still known to be no guess.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use super::{Scope, TokenText};
use crate::store::connection::Database;
use crate::store::tokens::TokenCheck;
use crate::store::{StoreError, tokens};

/// Whose token it is and what it allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Which token.
    pub token: Uuid,
    /// Its name.
    pub name: String,
    /// The one project that it sees; none: any.
    pub project: Option<String>,
    /// What it allows.
    pub scopes: Vec<Scope>,
}

/// Why a token was not let in.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is no token of ours.
    #[error("the text is no access token")]
    Malformed,
    /// There is no such token, or its secret is another: nobody is told which.
    #[error("there is no such access token")]
    Unknown,
    /// Its time is over.
    #[error("the access token has expired")]
    Expired,
    /// It was revoked.
    #[error("the access token was revoked")]
    Revoked,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Tokens remembered at most; past that, those that were not used just now are forgotten.
const MOST_KEPT: usize = 10_000;

/// Checks tokens.
#[derive(Debug)]
pub struct Verifier {
    database: Database,
    keep: Duration,
    /// By the hash of the whole text: what can be found in memory is no token.
    kept: Mutex<HashMap<[u8; 32], Kept>>,
}

#[derive(Debug)]
struct Kept {
    identity: Identity,
    until: Instant,
}

impl Verifier {
    /// Checks against a database, and remembers for so long.
    pub fn new(database: Database, keep: Duration) -> Self {
        Self {
            database,
            keep,
            kept: Mutex::default(),
        }
    }

    /// Whether this very token was let in before, and not turned away since: then it is no guess.
    pub fn knows(&self, text: &str) -> bool {
        let key: [u8; 32] = Sha256::digest(text).into();
        self.lock().contains_key(&key)
    }

    /// Whose token it is, if it was let in a moment ago.
    pub fn remembered(&self, text: &str) -> Option<Identity> {
        let key: [u8; 32] = Sha256::digest(text).into();
        self.lock()
            .get(&key)
            .filter(|kept| Instant::now() < kept.until)
            .map(|kept| kept.identity.clone())
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn verify(&self, text: &str) -> Result<Identity, Refused> {
        let token = TokenText::parse(text).ok_or(Refused::Malformed)?;
        let asked_at = Instant::now();
        let mut conn = self.database.connection().await?;
        let found = tokens::check(&mut conn, token.id()).await?;
        let row = judge(&token, found).inspect_err(|_| self.forget(text))?;
        if row.use_is_old
            && let Err(error) = tokens::mark_used(&mut conn, row.id).await
        {
            tracing::warn!(%error, token = %row.id, "the use of a token could not be written down");
        }
        drop(conn);
        let identity = Identity {
            token: row.id,
            name: row.name,
            project: row.project,
            // A newer version's scope is nothing that this one could allow.
            scopes: row
                .scopes
                .iter()
                .filter_map(|name| Scope::parse(name))
                .collect(),
        };
        let keep = row
            .remaining_secs
            .and_then(|secs| Duration::try_from_secs_f64(secs).ok())
            .map_or(self.keep, |remaining| remaining.min(self.keep));
        self.remember(text, &identity, asked_at + keep);
        Ok(identity)
    }

    fn remember(&self, text: &str, identity: &Identity, until: Instant) {
        let mut kept = self.lock();
        let now = Instant::now();
        if kept.len() >= MOST_KEPT {
            kept.retain(|_, kept| now < kept.until);
            if kept.len() >= MOST_KEPT {
                kept.clear();
            }
        }
        let identity = identity.clone();
        kept.insert(Sha256::digest(text).into(), Kept { identity, until });
    }

    fn forget(&self, text: &str) {
        let key: [u8; 32] = Sha256::digest(text).into();
        self.lock().remove(&key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Compares the secret first: whoever does not know it learns nothing else of the token. A token that does not exist
/// takes the same comparison.
fn judge(token: &TokenText, found: Option<TokenCheck>) -> Result<TokenCheck, Refused> {
    let presented = token.secret_sha256();
    let stored = found
        .as_ref()
        .map_or(&[0; 32][..], |row| row.secret_sha256.as_slice());
    let is_right = bool::from(presented.as_slice().ct_eq(stored));
    match found {
        Some(row) if is_right => {
            if row.revoked {
                Err(Refused::Revoked)
            } else if row.expired {
                Err(Refused::Expired)
            } else {
                Ok(row)
            }
        }
        _ => Err(Refused::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(token: &TokenText) -> TokenCheck {
        TokenCheck {
            id: token.id(),
            name: "ci".into(),
            project: None,
            scopes: vec!["read".into()],
            secret_sha256: token.secret_sha256().to_vec(),
            revoked: false,
            expired: false,
            remaining_secs: None,
            use_is_old: false,
        }
    }

    #[test]
    fn only_who_knows_the_secret_learns_of_a_tokens_end() {
        let token = TokenText::mint().expect("randomness");
        let other = TokenText::mint().expect("randomness");
        assert!(judge(&token, Some(row(&token))).is_ok());
        assert!(matches!(judge(&token, None), Err(Refused::Unknown)));
        for (revoked, expired) in [(false, false), (true, false), (false, true), (true, true)] {
            let changed = |of: &TokenText| TokenCheck {
                revoked,
                expired,
                ..row(of)
            };
            let verdict = judge(&token, Some(changed(&token)));
            match (revoked, expired) {
                (false, false) => assert!(verdict.is_ok()),
                (true, _) => assert!(matches!(verdict, Err(Refused::Revoked))),
                (false, true) => assert!(matches!(verdict, Err(Refused::Expired))),
            }
            // A wrong secret under the same id.
            let wrong = judge(&token, Some(changed(&other)));
            assert!(matches!(wrong, Err(Refused::Unknown)));
        }
    }

    #[test]
    fn a_damaged_hash_lets_nobody_in() {
        let token = TokenText::mint().expect("randomness");
        for stored in [vec![], vec![0; 32], token.secret_sha256()[..31].to_vec()] {
            let damaged = TokenCheck {
                secret_sha256: stored,
                ..row(&token)
            };
            assert!(matches!(
                judge(&token, Some(damaged)),
                Err(Refused::Unknown)
            ));
        }
    }
}
