//! What is stored as JSON, written straight from what it is.

use diesel::pg::Pg;
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types::Jsonb;
use serde::Serialize;

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
