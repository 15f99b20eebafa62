//! The OpenAPI document: assembled from the very services that are served.

use actix_web::App;
use utoipa::OpenApi;
use utoipa_actix_web::AppExt;
use utoipa_actix_web::service_config::ServiceConfig;

use super::problem::{Problem, ProblemCode};
use super::{
    answers, catalog, datasets, devices, health, leases, measurements, metrics, probes, revisions,
    studies,
};
use crate::study::validation::Violation;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Trialhead",
        description = "Measures where a deep-learning project should start: post a study (a workload, an optimizer, a device), and short training probes answer which batch sizes fit, what throughput each gives, and which one to begin with.\n\nErrors are RFC 9457 problem details with a stable `code`; lists come in pages by `page_size` and `page_token`; times are RFC 3339 in UTC, durations `…_secs`, sizes `…_bytes`. Unknown fields are refused.",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT")
    ),
    tags(
        (name = "studies", description = "What is asked"),
        (name = "answers", description = "What was found"),
        (name = "probes", description = "What was run"),
        (name = "measurements", description = "What was measured"),
        (name = "datasets", description = "What is trained on"),
        (name = "catalog", description = "What can be asked for"),
        (name = "devices", description = "Where it can run"),
        (name = "leases", description = "How workers get probes and tell their ends"),
        (name = "operations", description = "Health and metrics")
    ),
    components(schemas(Problem, ProblemCode, Violation))
)]
struct Base;

/// Adds every operation. Served and documented by the same list.
pub fn operations(config: &mut ServiceConfig<'_>) {
    config
        .service(studies::create_study)
        .service(studies::list_studies)
        .service(studies::get_study)
        .service(studies::delete_study)
        .service(studies::get_study_definition)
        .service(revisions::update_study_definition)
        .service(revisions::list_study_revisions)
        .service(studies::cancel_study)
        .service(probes::list_probes)
        .service(probes::get_probe)
        .service(measurements::list_measurements)
        .service(answers::get_analysis)
        .service(answers::list_recommendations)
        .service(answers::get_report)
        .service(datasets::upload_dataset)
        .service(datasets::list_datasets)
        .service(datasets::get_dataset)
        .service(datasets::get_dataset_content)
        .service(datasets::delete_dataset)
        .service(catalog::get_catalog)
        .service(devices::list_devices)
        .service(leases::claim_lease)
        .service(leases::send_heartbeat)
        .service(leases::complete_lease)
        .service(leases::release_lease)
        .service(health::get_liveness)
        .service(health::get_readiness)
        .service(metrics::get_instance_metrics)
        .service(metrics::get_service_metrics);
}

/// The contract.
pub fn document() -> utoipa::openapi::OpenApi {
    let (_, document) = App::new()
        .into_utoipa_app()
        .openapi(Base::openapi())
        .configure(operations)
        .split_for_parts();
    document
}

/// The methods of each path, for answers to a wrong one: (segments, `GET, POST`).
pub fn methods_by_path(document: &utoipa::openapi::OpenApi) -> Vec<(Vec<String>, String)> {
    document
        .paths
        .paths
        .iter()
        .map(|(path, item)| {
            let methods = [
                ("GET", item.get.is_some()),
                ("POST", item.post.is_some()),
                ("PUT", item.put.is_some()),
                ("DELETE", item.delete.is_some()),
            ];
            let allowed: Vec<&str> = methods
                .into_iter()
                .filter_map(|(name, has)| has.then_some(name))
                .collect();
            (
                path.split('/').map(ToOwned::to_owned).collect(),
                allowed.join(", "),
            )
        })
        .collect()
}
