//! The table of routes, grouped by resource. Resources are folders, verbs are files. The OpenAPI document
//! comes from the same declarations.

use axum::middleware::from_fn;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::middleware::request_timeout::enforce_request_timeout;
use super::state::AppState;
use super::{chat, completions, files, fine_tuning, models, uploads, webhook_endpoints};

/// Every route of OpenAI's API and of hone's extensions to it.
pub(super) fn api() -> OpenApiRouter<AppState> {
    let quick = OpenApiRouter::new()
        .routes(routes!(files::list::list))
        .routes(routes!(files::retrieve::retrieve, files::delete::delete))
        .routes(routes!(uploads::create::create))
        .routes(routes!(uploads::cancel::cancel))
        .routes(routes!(fine_tuning::list::list))
        .routes(routes!(fine_tuning::retrieve::retrieve))
        .routes(routes!(fine_tuning::cancel::cancel))
        .routes(routes!(fine_tuning::pause::pause))
        .routes(routes!(fine_tuning::resume::resume))
        .routes(routes!(fine_tuning::events::events))
        .routes(routes!(fine_tuning::checkpoints::checkpoints))
        .merge(fine_tuning::permissions::routes())
        .routes(routes!(fine_tuning::metrics::metrics))
        .routes(routes!(fine_tuning::report::report))
        .routes(routes!(fine_tuning::graders::validate))
        .routes(routes!(fine_tuning::graders::run))
        .routes(routes!(models::list::list))
        .routes(routes!(models::retrieve::retrieve, models::delete::delete))
        .routes(routes!(webhook_endpoints::create::create, webhook_endpoints::list::list))
        .routes(routes!(
            webhook_endpoints::retrieve::retrieve,
            webhook_endpoints::update::update,
            webhook_endpoints::delete::delete
        ))
        .routes(routes!(webhook_endpoints::rotate_secret::rotate_secret))
        .routes(routes!(webhook_endpoints::test::test))
        .routes(routes!(webhook_endpoints::deliveries::deliveries))
        .routes(routes!(webhook_endpoints::event_types::event_types))
        .layer(from_fn(enforce_request_timeout));
    OpenApiRouter::new()
        .merge(quick)
        .routes(routes!(files::create::create))
        .routes(routes!(files::content::content))
        // A dry run has a time limit of its own.
        .routes(routes!(fine_tuning::create::create))
        .routes(routes!(fine_tuning::adapter::adapter))
        .routes(routes!(uploads::add_part::add_part))
        .routes(routes!(uploads::complete::complete))
        .routes(routes!(chat::create::create))
        .routes(routes!(completions::create::create))
}
