//! The OpenAPI document, from the routes' own declarations.

use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;

/// What the document says of the whole.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "hone",
        description = "OpenAI's fine-tuning API on a machine of your own: files, fine-tuning jobs, \
                       models and chat completions.",
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

/// The document of everything that [`super::router`] serves under `/v1`.
pub fn document() -> Document {
    let (_, mut document) =
        OpenApiRouter::with_openapi(Info::openapi()).nest("/v1", super::api()).split_for_parts();
    // The router's word for "the rest of the path" is not part of OpenAPI.
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths =
        paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    document
}
