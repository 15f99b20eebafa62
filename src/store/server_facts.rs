//! What the database's server says of itself, for whoever looks for what is wrong.

use diesel::sql_types::{Double, Integer, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::error::StoreError;
use super::statement::statement;

/// The server, as it sees itself.
#[derive(Debug, Clone, diesel::QueryableByName)]
pub struct ServerFacts {
    /// Its version, `15.13`.
    #[diesel(sql_type = Text)]
    pub version: String,
    /// The same as a number, `150013`.
    #[diesel(sql_type = Integer)]
    pub version_number: i32,
    /// Its clock, seconds since 1970.
    #[diesel(sql_type = Double)]
    pub clock_secs: f64,
    /// Connections that it takes at most, those of superusers left out.
    #[diesel(sql_type = Integer)]
    pub connections: i32,
}

/// Asks it.
///
/// # Errors
/// Those of the database.
pub async fn read(conn: &mut AsyncPgConnection) -> Result<ServerFacts, StoreError> {
    Ok(statement(
        "SELECT current_setting('server_version') AS version, \
            current_setting('server_version_num')::integer AS version_number, \
            extract(epoch FROM clock_timestamp())::double precision AS clock_secs, \
            current_setting('max_connections')::integer \
                - current_setting('superuser_reserved_connections')::integer AS connections",
    )
    .get_result(conn)
    .await?)
}
