//! The OpenAPI document, from the routes' own declarations.

use utoipa::OpenApi;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi as Document, Ref, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;

/// Title, description and tags of the document.
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
        (name = "webhooks", description = "Notifications when a job ends"),
        (
            name = "extensions",
            description = "What hone has beside OpenAI's API: clients of that API need none of it"
        ),
        (name = "models", description = "Base models and fine-tuned ones"),
        (name = "chat", description = "Answers")
    )
)]
struct Info;

/// Name of the security scheme.
const SCHEME: &str = "api_key";

/// Error replies that every route may have, from the middleware.
const MIDDLEWARE_ERRORS: &[(&str, &str)] = &[
    ("401", "No API key, or one that is not known or was revoked"),
    ("429", "Too many requests with this key for now: Retry-After says when to try again"),
];

/// The document of everything that [`crate::http::router`] serves under `/v1`.
pub fn document() -> Document {
    let (_, mut document) = OpenApiRouter::with_openapi(Info::openapi())
        .nest("/v1", crate::http::routes::api())
        .split_for_parts();
    // The router's syntax for the rest of a path is not part of OpenAPI.
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths =
        paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    for item in document.paths.paths.values_mut() {
        let operations =
            [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            add_middleware_errors(operation);
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

/// Adds the errors of the middleware.
fn add_middleware_errors(operation: &mut Operation) {
    for (status, description) in MIDDLEWARE_ERRORS {
        let envelope = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody")));
        let response = ResponseBuilder::new()
            .description(*description)
            .content("application/json", envelope.build())
            .build();
        let responses = &mut operation.responses.responses;
        responses.entry((*status).to_owned()).or_insert_with(|| response.into());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use crate::http::{chat, completions, fine_tuning};
    use crate::validate::{job_request, permission_request, upload_request, webhook_request};

    /// The fields that the parser of each JSON body reads, by operation.
    const PARSERS: &[(&str, &[&str])] = &[
        ("createChatCompletion", chat::request::FIELDS),
        ("createCompletion", completions::request::FIELDS),
        ("createFineTuningJob", job_request::FIELDS),
        ("createFineTuningCheckpointPermission", permission_request::FIELDS),
        ("validateGrader", fine_tuning::graders::VALIDATE_FIELDS),
        ("runGrader", fine_tuning::graders::RUN_FIELDS),
        ("createUpload", upload_request::CREATE_FIELDS),
        ("completeUpload", upload_request::COMPLETE_FIELDS),
        ("createWebhookEndpoint", webhook_request::ENDPOINT_FIELDS),
        ("updateWebhookEndpoint", webhook_request::ENDPOINT_FIELDS),
        ("rotateWebhookSecret", webhook_request::ROTATE_FIELDS),
        ("testWebhookEndpoint", webhook_request::TEST_FIELDS),
    ];

    #[test]
    fn the_document_lists_the_fields_that_the_parsers_read() {
        let document = serde_json::to_value(super::document()).expect("it serialises");
        let mut operations = BTreeSet::new();
        for item in document["paths"].as_object().expect("paths").values() {
            for operation in item.as_object().expect("operations").values() {
                let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
                if schema.is_null() {
                    continue;
                }
                let name = operation["operationId"].as_str().expect("a name");
                operations.insert(name);
                let parser = PARSERS.iter().find(|(known, _fields)| *known == name);
                let (_name, fields) = parser.unwrap_or_else(|| panic!("add {name} to the table"));
                let properties = resolve(&document, schema)["properties"].as_object();
                let documented: BTreeSet<&str> =
                    properties.expect("an object").keys().map(String::as_str).collect();
                assert_eq!(documented, fields.iter().copied().collect(), "{name}");
            }
        }
        assert_eq!(operations, PARSERS.iter().map(|(name, _fields)| *name).collect());
    }

    /// The object that a schema references, also when the body is optional.
    fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
        if let Some(alternatives) = schema["oneOf"].as_array() {
            return resolve(document, &alternatives[0]);
        }
        match schema["$ref"].as_str() {
            Some(reference) => {
                let pointer = reference.strip_prefix('#').expect("a local reference");
                document.pointer(pointer).expect("it is there")
            }
            None => schema,
        }
    }
}
