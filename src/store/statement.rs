//! Statements as text whose preparation their connection keeps.
//!
//! `diesel::sql_query` has its text parsed on each call, in a round trip of its own, and given up afterwards. The
//! statements here are few and always the same, so a connection prepares each of them once.

use std::borrow::Cow;
use std::marker::PhantomData;

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::serialize::ToSql;
use diesel::sql_types::{HasSqlType, Untyped};

/// A statement and what is bound to it.
#[derive(Debug, Clone)]
#[must_use = "a statement does nothing until it is executed"]
pub struct Statement<Bound> {
    text: Cow<'static, str>,
    bound: Bound,
}

/// What was bound before, and one value more.
#[derive(Debug, Clone)]
pub struct And<Before, SqlType, Value> {
    before: Before,
    value: Value,
    sql_type: PhantomData<SqlType>,
}

/// A statement with the parameters `$1`, `$2`, …, to be bound in this order. Its text comes from a small set: a
/// connection keeps each that it has seen, so what differs from call to call must be bound. Columns are named one by one:
/// Postgres refuses a kept statement whose `*` has come to mean more.
pub fn statement(text: impl Into<Cow<'static, str>>) -> Statement<()> {
    Statement {
        text: text.into(),
        bound: (),
    }
}

impl<Bound> Statement<Bound> {
    /// Binds the next parameter.
    pub fn bind<SqlType, Value>(self, value: Value) -> Statement<And<Bound, SqlType, Value>> {
        Statement {
            text: self.text,
            bound: And {
                before: self.bound,
                value,
                sql_type: PhantomData,
            },
        }
    }
}

impl<Bound: QueryFragment<Pg>> QueryFragment<Pg> for Statement<Bound> {
    fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        pass.push_sql(&self.text);
        self.bound.walk_ast(pass)
    }
}

impl<Before, SqlType, Value> QueryFragment<Pg> for And<Before, SqlType, Value>
where
    Before: QueryFragment<Pg>,
    Pg: HasSqlType<SqlType>,
    Value: ToSql<SqlType, Pg>,
{
    fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        self.before.walk_ast(pass.reborrow())?;
        pass.push_bind_param_value_only(&self.value)
    }
}

/// Kept by its text: two statements of one type differ.
impl<Bound> QueryId for Statement<Bound> {
    type QueryId = ();

    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Bound> Query for Statement<Bound> {
    type SqlType = Untyped;
}
