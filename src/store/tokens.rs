//! Access tokens: what is known of them, never their secrets. Whether one is live is said by the database's clock.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, Binary, Bool, Double, Integer, Nullable, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::error::StoreError;
use super::statement::statement;

type SqlUuid = diesel::sql_types::Uuid;

/// A token to be stored.
#[derive(Debug, Clone)]
pub struct NewToken<'a> {
    pub id: Uuid,
    pub name: &'a str,
    pub project: Option<&'a str>,
    pub scopes: &'a [&'a str],
    pub secret_sha256: &'a [u8],
    pub expires_in_days: Option<i32>,
}

/// A token as it is listed.
#[derive(Debug, Clone, QueryableByName)]
pub struct TokenRow {
    #[diesel(sql_type = SqlUuid)]
    pub id: Uuid,
    #[diesel(sql_type = Text)]
    pub name: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub project: Option<String>,
    #[diesel(sql_type = Array<Text>)]
    pub scopes: Vec<String>,
    #[diesel(sql_type = Timestamptz)]
    pub created_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub revoked_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_used_at: Option<DateTime<Utc>>,
    /// `live`, `expired` or `revoked`.
    #[diesel(sql_type = Text)]
    pub state: String,
}

const LISTED: &str = "id, name, project, scopes, created_at, expires_at, revoked_at, last_used_at, \
    CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= now() THEN 'expired' \
         ELSE 'live' END AS state";

/// What a presented token is checked against.
#[derive(Debug, Clone, QueryableByName)]
pub struct TokenCheck {
    #[diesel(sql_type = SqlUuid)]
    pub id: Uuid,
    #[diesel(sql_type = Text)]
    pub name: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub project: Option<String>,
    #[diesel(sql_type = Array<Text>)]
    pub scopes: Vec<String>,
    #[diesel(sql_type = Binary)]
    pub secret_sha256: Vec<u8>,
    #[diesel(sql_type = Bool)]
    pub revoked: bool,
    #[diesel(sql_type = Bool)]
    pub expired: bool,
    /// Seconds until it expires; none for one that never does.
    #[diesel(sql_type = Nullable<Double>)]
    pub remaining_secs: Option<f64>,
    /// Whether its last use was written down more than a minute ago.
    #[diesel(sql_type = Bool)]
    pub use_is_old: bool,
}

/// Stores a token.
pub async fn insert(
    conn: &mut AsyncPgConnection,
    new: &NewToken<'_>,
) -> Result<TokenRow, StoreError> {
    Ok(statement(format!(
        "INSERT INTO tokens (id, name, project, scopes, secret_sha256, expires_at) \
         VALUES ($1, $2, $3, $4, $5, now() + make_interval(days => $6)) RETURNING {LISTED}"
    ))
    .bind::<SqlUuid, _>(new.id)
    .bind::<Text, _>(new.name)
    .bind::<Nullable<Text>, _>(new.project)
    .bind::<Array<Text>, _>(new.scopes)
    .bind::<Binary, _>(new.secret_sha256)
    .bind::<Nullable<Integer>, _>(new.expires_in_days)
    .get_result(conn)
    .await?)
}

/// All tokens, the newest first.
pub async fn list(conn: &mut AsyncPgConnection) -> Result<Vec<TokenRow>, StoreError> {
    Ok(
        statement(format!("SELECT {LISTED} FROM tokens ORDER BY id DESC"))
            .load(conn)
            .await?,
    )
}

/// Revokes a token for good; one that is revoked stays as it was.
pub async fn revoke(
    conn: &mut AsyncPgConnection,
    id: Uuid,
) -> Result<Option<TokenRow>, StoreError> {
    Ok(statement(format!(
        "UPDATE tokens SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1 RETURNING {LISTED}"
    ))
    .bind::<SqlUuid, _>(id)
    .get_result(conn)
    .await
    .optional()?)
}

/// What a presented token is checked against; by its key.
pub async fn check(
    conn: &mut AsyncPgConnection,
    id: Uuid,
) -> Result<Option<TokenCheck>, StoreError> {
    Ok(statement(
        "SELECT id, name, project, scopes, secret_sha256, revoked_at IS NOT NULL AS revoked, \
            coalesce(expires_at <= now(), false) AS expired, \
            extract(epoch FROM expires_at - now())::float8 AS remaining_secs, \
            coalesce(last_used_at < now() - interval '1 minute', true) AS use_is_old \
         FROM tokens WHERE id = $1",
    )
    .bind::<SqlUuid, _>(id)
    .get_result(conn)
    .await
    .optional()?)
}

/// Writes down that a token was used, unless another request has just done so.
pub async fn mark_used(conn: &mut AsyncPgConnection, id: Uuid) -> Result<(), StoreError> {
    statement(
        "UPDATE tokens SET last_used_at = now() WHERE id = $1 \
         AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')",
    )
    .bind::<SqlUuid, _>(id)
    .execute(conn)
    .await?;
    Ok(())
}

/// Whether there is any token that would be let in.
pub async fn any_live(conn: &mut AsyncPgConnection) -> Result<bool, StoreError> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = Bool)]
        found: bool,
    }
    let row: Found = statement(
        "SELECT EXISTS (SELECT 1 FROM tokens WHERE revoked_at IS NULL \
            AND (expires_at IS NULL OR expires_at > now())) AS found",
    )
    .get_result(conn)
    .await?;
    Ok(row.found)
}
