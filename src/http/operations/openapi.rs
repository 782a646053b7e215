//! The OpenAPI document, from the routes' own declarations.

use utoipa::OpenApi;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi as Document, Ref, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;

/// What the document says of the whole.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "hone",
        description = "OpenAI's fine-tuning API on a machine of your own: files, fine-tuning jobs, \
                       models, chat and plain completions.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
        contact()
    ),
    tags(
        (name = "files", description = "Training data and results"),
        (name = "uploads", description = "Files that come in parts"),
        (name = "fine-tuning", description = "Jobs, their events and checkpoints"),
        (name = "webhooks", description = "Who is told when a job ends"),
        (
            name = "extensions",
            description = "What hone has beside OpenAI's API: clients of that API need none of it"
        ),
        (name = "models", description = "Base models and fine-tuned ones"),
        (name = "chat", description = "Answers")
    )
)]
struct Info;

/// Name of the way in which keys are shown.
const SCHEME: &str = "api_key";

/// What every route may answer, because it is found out before the route is asked.
const BEFORE_EVERY_ROUTE: &[(&str, &str)] = &[
    ("401", "No API key, or one that is not known or was revoked"),
    ("429", "Too many requests with this key for now: Retry-After says when to try again"),
];

/// The document of everything that [`crate::http::router`] serves under `/v1`.
pub fn document() -> Document {
    let (_, mut document) = OpenApiRouter::with_openapi(Info::openapi())
        .nest("/v1", crate::http::routes::api())
        .split_for_parts();
    // The router's word for "the rest of the path" is not part of OpenAPI.
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths =
        paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    for item in document.paths.paths.values_mut() {
        let operations =
            [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            demand_a_key(operation);
        }
    }
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "A key that `hone keys create` has made. As long as there is none, any key is taken",
        ))
        .build();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(SCHEME, SecurityScheme::Http(bearer));
    document.security = Some(vec![SecurityRequirement::new(SCHEME, [] as [&str; 0])]);
    document
}

/// Adds what stands before every route.
fn demand_a_key(operation: &mut Operation) {
    for (status, description) in BEFORE_EVERY_ROUTE {
        let envelope = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody")));
        let response = ResponseBuilder::new()
            .description(*description)
            .content("application/json", envelope.build())
            .build();
        let responses = &mut operation.responses.responses;
        responses.entry((*status).to_owned()).or_insert_with(|| response.into());
    }
}
