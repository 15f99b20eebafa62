//! A token as text, and how one is made.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Scope, is_project_name};
use crate::store::connection::Database;
use crate::store::tokens::{self, TokenRow};
use crate::store::{StoreError, tokens as store};

/// What every token begins with, so that people and scanners for leaked secrets know what it is.
const PREFIX: &str = "trialhead_";
/// Characters of the id: a UUID without dashes.
const ID: usize = 32;
/// Bytes of the secret.
const SECRET: usize = 32;
/// Characters of the secret: base64url without padding.
const SECRET_TEXT: usize = 43;

/// A token as it is presented: which one, and its secret. Shown in full by [`reveal`](Self::reveal) only.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenText {
    id: Uuid,
    secret: [u8; SECRET],
}

impl fmt::Debug for TokenText {
    /// Leaves the secret out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenText")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl TokenText {
    /// A new token, from the system's random source.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn mint() -> Result<Self, CreateError> {
        let mut secret = [0; SECRET];
        getrandom::fill(&mut secret).map_err(|error| CreateError::Random(error.to_string()))?;
        Ok(Self {
            id: Uuid::now_v7(),
            secret,
        })
    }

    /// Reads a token. Only the one spelling that [`reveal`](Self::reveal) gives is one.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(PREFIX)?;
        let (id, rest) = rest.split_at_checked(ID)?;
        let secret = rest.strip_prefix('_')?;
        if secret.len() != SECRET_TEXT {
            return None;
        }
        let read = Self {
            id: Uuid::try_parse(id).ok()?,
            secret: BASE64_URL_SAFE_NO_PAD
                .decode(secret)
                .ok()?
                .try_into()
                .ok()?,
        };
        (read.reveal() == text).then_some(read)
    }

    /// The token in full: to be shown once, and never logged.
    pub fn reveal(&self) -> String {
        format!(
            "{PREFIX}{}_{}",
            self.id.simple(),
            BASE64_URL_SAFE_NO_PAD.encode(self.secret)
        )
    }

    /// Which token it is.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// What is stored of the secret.
    pub fn secret_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }
}

/// A token to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// A name for people; kept as `created_by` with what the token makes.
    pub name: String,
    /// What it allows.
    pub scopes: Vec<Scope>,
    /// The one project that it sees; none: any.
    pub project: Option<String>,
    /// Days after which it expires; none: never.
    pub expires_in_days: Option<u32>,
}

/// Why a token was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// What was asked for is no token; the message names the mend.
    #[error("{0}")]
    Refused(&'static str),
    /// The system has no randomness to give.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Days that a token lives at most, unless it lives for ever: ten years.
pub const MOST_DAYS: u32 = 3650;

impl NewToken {
    fn check(&self) -> Result<(), CreateError> {
        let characters = self.name.chars().count();
        if !(1..=100).contains(&characters)
            || self.name.trim() != self.name
            || self.name.chars().any(char::is_control)
        {
            return Err(CreateError::Refused(
                "the name must be 1 to 100 characters, without control characters and without spaces around it",
            ));
        }
        if self.name == crate::lifecycle::ANONYMOUS {
            return Err(CreateError::Refused(
                "the name must not be anonymous: that is who asks without a token",
            ));
        }
        if self.scopes.is_empty() {
            return Err(CreateError::Refused(
                "a token needs at least one scope: read, write, work or admin",
            ));
        }
        if self
            .project
            .as_deref()
            .is_some_and(|it| !is_project_name(it))
        {
            return Err(CreateError::Refused(
                "the project must be 1 to 64 letters, digits, dots, dashes and underscores",
            ));
        }
        if self
            .expires_in_days
            .is_some_and(|days| !(1..=MOST_DAYS).contains(&days))
        {
            return Err(CreateError::Refused(
                "a token expires after 1 to 3650 days, or never",
            ));
        }
        Ok(())
    }
}

/// Makes a token. The text is given this once; only a hash of its secret is kept.
///
/// # Errors
/// See [`CreateError`]; nothing is stored then.
pub async fn create(
    database: &Database,
    new: &NewToken,
) -> Result<(TokenText, TokenRow), CreateError> {
    new.check()?;
    let mut scopes = new.scopes.clone();
    scopes.sort_unstable();
    scopes.dedup();
    let scopes: Vec<&str> = scopes.into_iter().map(Scope::as_str).collect();
    let text = TokenText::mint()?;
    let mut conn = database.connection().await?;
    let row = store::insert(
        &mut conn,
        &tokens::NewToken {
            id: text.id(),
            name: &new.name,
            project: new.project.as_deref(),
            scopes: &scopes,
            secret_sha256: &text.secret_sha256(),
            expires_in_days: new
                .expires_in_days
                .map(|days| i32::try_from(days).unwrap_or(i32::MAX)),
        },
    )
    .await?;
    Ok((text, row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_as_it_was_shown() {
        for _ in 0..100 {
            let token = TokenText::mint().expect("randomness");
            let shown = token.reveal();
            assert_eq!(shown.len(), 86);
            assert_eq!(TokenText::parse(&shown), Some(token));
        }
    }

    #[test]
    fn no_two_tokens_share_a_secret() {
        let (a, b) = (TokenText::mint(), TokenText::mint());
        let (a, b) = (a.expect("randomness"), b.expect("randomness"));
        assert_ne!(a.secret, b.secret);
        assert_ne!(a.secret_sha256(), b.secret_sha256());
    }

    #[test]
    fn what_is_no_token_is_not_read_as_one() {
        let token = TokenText::mint().expect("randomness").reveal();
        let id = &token[PREFIX.len()..PREFIX.len() + ID];
        let secret = &token[PREFIX.len() + ID + 1..];
        for bad in [
            String::new(),
            "trialhead_".into(),
            "trialhead".into(),
            id.into(),
            format!("{token} "),
            format!(" {token}"),
            format!("{token}="),
            format!("{token}a"),
            token[..token.len() - 1].to_owned(),
            token.to_uppercase(),
            token.replacen('_', "-", 1),
            format!("trialhead_{id}__{}", &secret[1..]).replacen("__", "_é", 1),
            format!("trialhead_{}_{secret}", id.to_uppercase()),
            format!("trialhead_{}_{secret}", "é".repeat(16)),
            format!("trialhead_{}é_{secret}", &id[1..]),
            format!("trialhead_{id}_{}", "*".repeat(43)),
            // The last character carries four bits that must be zero: one spelling a token.
            format!("trialhead_{id}_{}_", &secret[..42]),
            "x".repeat(1_000_000),
        ] {
            assert_eq!(TokenText::parse(&bad), None, "{bad:.100}");
        }
    }

    #[test]
    fn no_debug_output_shows_the_secret() {
        let token = TokenText::mint().expect("randomness");
        let shown = token.reveal();
        let debug = format!("{token:?}");
        assert!(
            !debug.contains(&shown[shown.len() - SECRET_TEXT..]),
            "{debug}"
        );
        assert!(debug.contains(&token.id().to_string()), "{debug}");
    }

    #[test]
    fn a_bad_wish_is_refused_with_the_mend() {
        let good = NewToken {
            name: "ci".into(),
            scopes: vec![Scope::Read],
            project: Some("vision".into()),
            expires_in_days: Some(30),
        };
        good.check().expect("a token");
        let refused = |change: fn(&mut NewToken), why: &str| {
            let mut bad = good.clone();
            change(&mut bad);
            let error = bad.check().expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        };
        refused(|it| it.name = String::new(), "1 to 100");
        refused(|it| it.name = "a\u{7}b".into(), "control");
        refused(|it| it.name = "x".repeat(101), "1 to 100");
        refused(|it| it.name = "anonymous".into(), "anonymous");
        refused(|it| it.scopes.clear(), "scope");
        refused(|it| it.project = Some("a/b".into()), "project");
        refused(|it| it.expires_in_days = Some(0), "days");
        refused(|it| it.expires_in_days = Some(3651), "days");
    }
}
