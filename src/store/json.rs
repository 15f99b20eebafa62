//! What is stored as JSON, written straight from what it is and read straight into that.

use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::pg::{Pg, PgValue};
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types::Jsonb;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The only version of the binary form of `jsonb` that there is; its text follows.
const VERSION: u8 = 1;

/// Bound as `jsonb`, with no [`serde_json::Value`] of it between.
#[derive(Debug, Clone, Copy)]
pub(super) struct Json<'a, T: ?Sized>(pub &'a T);

impl<T: Serialize + std::fmt::Debug + ?Sized> ToSql<Jsonb, Pg> for Json<'_, T> {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        std::io::Write::write_all(out, &[VERSION])?;
        serde_json::to_writer(out, self.0)?;
        Ok(IsNull::No)
    }
}

/// The text of a `jsonb`, to be read as what it is.
#[derive(Debug, FromSqlRow)]
pub(super) struct JsonText(Vec<u8>);

impl JsonText {
    pub(super) fn read<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.0)
    }
}

impl FromSql<Jsonb, Pg> for JsonText {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        match value.as_bytes() {
            [VERSION, text @ ..] => Ok(Self(text.to_owned())),
            _ => Err("a jsonb of an unknown version".into()),
        }
    }
}
