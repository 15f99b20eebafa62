//! What can be asked next: OpenAPI links from an answer to the operations that go on from it, for generated clients and
//! for tools that walk through a service.

use utoipa::openapi::RefOr;
use utoipa::openapi::link::LinkBuilder;
use utoipa::openapi::path::Operation;

/// An answer whose id operations go on with.
struct Links {
    /// The operation that gives it, and with which status.
    from: &'static str,
    status: &'static str,
    /// Where the id is, as a runtime expression.
    id: &'static str,
    /// What the operations that go on call it for people.
    what: &'static str,
    to: &'static [&'static str],
}

const STUDY: &[&str] = &[
    "get_study",
    "get_study_definition",
    "list_study_revisions",
    "list_probes",
    "list_measurements",
    "get_analysis",
    "list_recommendations",
    "get_report",
    "stream_study_events",
    "cancel_study",
    "delete_study",
];

const LINKS: [Links; 7] = [
    Links {
        from: "create_study",
        status: "202",
        id: "$response.body#/id",
        what: "The study that was created",
        to: STUDY,
    },
    Links {
        from: "list_studies",
        status: "200",
        id: "$response.body#/items/0/id",
        what: "The newest study of the page",
        to: &["get_study", "list_recommendations"],
    },
    Links {
        from: "list_probes",
        status: "200",
        id: "$response.body#/items/0/probe/id",
        what: "The first probe of the page",
        to: &["get_probe"],
    },
    Links {
        from: "upload_dataset",
        status: "201",
        id: "$response.body#/id",
        what: "The data set that was stored",
        to: &["get_dataset", "get_dataset_content", "delete_dataset"],
    },
    Links {
        from: "upload_dataset",
        status: "200",
        id: "$response.body#/id",
        what: "The data set that was there already",
        to: &["get_dataset", "get_dataset_content", "delete_dataset"],
    },
    Links {
        from: "list_datasets",
        status: "200",
        id: "$response.body#/items/0/id",
        what: "The newest data set of the page",
        to: &["get_dataset"],
    },
    Links {
        from: "claim_lease",
        status: "200",
        id: "$request.body#/lease_id",
        what: "The lease that holds the probe",
        to: &["send_heartbeat", "complete_lease", "release_lease"],
    },
];

/// Adds its links to an operation.
pub fn add(operation: &mut Operation) {
    for links in LINKS {
        if operation.operation_id.as_deref() == Some(links.from) {
            links.add(operation);
        }
    }
}

impl Links {
    fn add(self, operation: &mut Operation) {
        let Some(RefOr::T(response)) = operation.responses.responses.get_mut(self.status) else {
            return;
        };
        for to in self.to {
            let link = LinkBuilder::new()
                .operation_id(*to)
                .description(self.what)
                .parameter("id", self.id);
            response
                .links
                .insert((*to).to_owned(), RefOr::T(link.build()));
        }
    }
}
