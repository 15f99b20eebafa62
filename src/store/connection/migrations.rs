//! Bringing the schema to what this version needs. The migrations are in the binary; a session lock lets
//! any number of servers start at once; versions that only a newer server knows are left alone, since a
//! migration only ever expands what an older server uses.

use diesel::migration::MigrationSource;
use diesel::pg::Pg;
use diesel::sql_types::{Bool, Text};
use diesel_async::{AsyncMigrationHarness, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::Database;
use crate::store::error::StoreError;

/// The migrations of this version.
pub const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// Any number that nobody else uses for an advisory lock in this database ("trialhed" in ASCII).
const LOCK: i64 = 0x7472_6961_6c68_6564;

/// What to do about a schema that is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrateMode {
    /// Bring it up to date.
    Auto,
    /// Refuse: somebody else migrates, with `trialhead migrate`.
    Check,
}

/// How a schema compares with this version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MigrationStatus {
    /// Migrations of this version that the database lacks, in order.
    pub missing: Vec<String>,
    /// Migrations in the database that this version does not know.
    pub newer: Vec<String>,
}

impl MigrationStatus {
    /// Whether this version can work with it.
    pub fn is_ready(&self) -> bool {
        self.missing.is_empty()
    }
}

/// Why the schema is not what this version needs.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "the database lacks {} migrations ({}): run `trialhead migrate`, or set database.migrate = \"auto\"",
        .0.len(), .0.join(", ")
    )]
    Missing(Vec<String>),
    #[error("another server has been migrating the database for five minutes")]
    Locked,
    #[error("a migration failed and was undone: {0}")]
    Failed(String),
}

#[derive(diesel::QueryableByName)]
struct Exists {
    #[diesel(sql_type = Bool)]
    found: bool,
}

#[derive(diesel::QueryableByName)]
struct Applied {
    #[diesel(sql_type = Text)]
    version: String,
}

/// Makes the schema what this version needs, or says what it lacks.
pub async fn migrate(
    database: &Database,
    mode: MigrateMode,
) -> Result<MigrationStatus, MigrateError> {
    let before = migrations_ready(database).await?;
    if !before.newer.is_empty() {
        tracing::info!(newer = ?before.newer, "the database has migrations of a newer version");
    }
    if before.is_ready() {
        return Ok(before);
    }
    if mode == MigrateMode::Check {
        return Err(MigrateError::Missing(before.missing));
    }
    // A connection of its own: migrations may take longer than a statement of the service, and the lock is
    // released with it, whatever happens.
    let mut connection = database
        .target
        .establish()
        .await
        .map_err(|error| StoreError::Unavailable(error.to_string()))?;
    connection
        .batch_execute(&format!(
            "SET lock_timeout = '5min'; SELECT pg_advisory_lock({LOCK})"
        ))
        .await
        .map_err(|error| {
            if error.to_string().contains("lock timeout") {
                MigrateError::Locked
            } else {
                StoreError::from(error).into()
            }
        })?;
    connection
        .batch_execute("SET lock_timeout = 0")
        .await
        .map_err(StoreError::from)?;
    let applied = tokio::task::spawn_blocking(move || {
        let mut harness = AsyncMigrationHarness::new(connection);
        let applied: Vec<String> = harness
            .run_pending_migrations(MIGRATIONS)?
            .iter()
            .map(ToString::to_string)
            .collect();
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(applied)
    })
    .await
    .map_err(|error| MigrateError::Failed(error.to_string()))?
    .map_err(|error| MigrateError::Failed(super::with_causes(error.as_ref())))?;
    tracing::info!(?applied, "the database is migrated");
    Ok(migrations_ready(database).await?)
}

/// Compares the schema with this version, changing nothing: for readiness.
pub async fn migrations_ready(database: &Database) -> Result<MigrationStatus, StoreError> {
    let mut connection = database.connection().await?;
    let applied = applied(&mut connection).await?;
    Ok(compare(&known()?, &applied))
}

fn known() -> Result<Vec<String>, StoreError> {
    let migrations = MigrationSource::<Pg>::migrations(&MIGRATIONS)
        .map_err(|error| StoreError::unreadable("the embedded migrations", error))?;
    let mut versions: Vec<String> = migrations
        .iter()
        .map(|migration| migration.name().version().to_string())
        .collect();
    versions.sort_unstable();
    Ok(versions)
}

async fn applied(connection: &mut AsyncPgConnection) -> Result<Vec<String>, StoreError> {
    let table: Exists =
        diesel::sql_query("SELECT to_regclass('__diesel_schema_migrations') IS NOT NULL AS found")
            .get_result(connection)
            .await?;
    if !table.found {
        return Ok(Vec::new());
    }
    let rows: Vec<Applied> =
        diesel::sql_query("SELECT version::text FROM __diesel_schema_migrations ORDER BY version")
            .get_results(connection)
            .await?;
    Ok(rows.into_iter().map(|row| row.version).collect())
}

fn compare(known: &[String], applied: &[String]) -> MigrationStatus {
    let without = |of: &[String], others: &[String]| {
        of.iter()
            .filter(|version| !others.contains(version))
            .cloned()
            .collect()
    };
    MigrationStatus {
        missing: without(known, applied),
        newer: without(applied, known),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_database_is_ready_and_an_older_one_is_not() {
        let versions = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let newer = compare(&versions(&["1", "2"]), &versions(&["1", "2", "3"]));
        assert!(newer.is_ready());
        assert_eq!(newer.newer, ["3"]);
        let older = compare(&versions(&["1", "2"]), &versions(&["1", "3"]));
        assert!(!older.is_ready());
        assert_eq!(older.missing, ["2"]);
    }
}
