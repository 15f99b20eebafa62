//! The problems that many operations share, for the OpenAPI document.

use std::collections::BTreeMap;

use utoipa::IntoResponses;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};

/// One documented problem: its status and when it comes.
pub fn problem(description: &str) -> RefOr<Response> {
    ResponseBuilder::new()
        .description(description)
        .content(
            "application/problem+json",
            ContentBuilder::new()
                .schema(Some(Ref::from_schema_name("Problem")))
                .build(),
        )
        .build()
        .into()
}

/// Declares sets of problems that operations name in their `responses(…)`.
macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident { $($status:literal: $when:literal,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug)]
            pub struct $name;

            impl IntoResponses for $name {
                fn responses() -> BTreeMap<String, RefOr<Response>> {
                    BTreeMap::from([$(($status.to_owned(), problem($when)),)*])
                }
            }
        )*
    };
}

problems! {
    /// Any operation can answer so.
    Always {
        "400": "The request is not understood",
        "403": "The Host header is not one that this service answers to, or a browser says that a page of another site writes (`cross_site`)",
        "500": "A defect of the service; the log line carries the same request id",
        "503": "The database is away or the service is shutting down; try again after Retry-After",
    }
    /// The body is JSON, and not too much of it.
    JsonBody {
        "408": "Nothing of the body came for too long",
        "413": "The body is larger than allowed",
        "415": "The body is not declared as JSON",
    }
    /// The path names something that may not exist.
    Missing {
        "404": "There is no such thing in the caller's project",
    }
    /// The state forbids it.
    Conflict {
        "409": "The study's state forbids it",
    }
    /// The query has a value that is not allowed.
    InvalidQuery {
        "422": "A parameter has a value that is not allowed; `errors` names it",
    }
}
