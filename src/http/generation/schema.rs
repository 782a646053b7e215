//! Schemas of fields that cannot be derived, for the OpenAPI document.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AnyOf, Array, Object, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// A text or up to four, none of them empty.
pub(in crate::http) struct StopTexts;

impl PartialSchema for StopTexts {
    fn schema() -> RefOr<Schema> {
        let text = || Object::builder().schema_type(Type::String).min_length(Some(1));
        let list = Array::builder().items(RefOr::T(text().build().into())).max_items(Some(4));
        AnyOf::builder().item(text()).item(list).into()
    }
}

impl ToSchema for StopTexts {}

/// Numbers from -100 to 100 by the ids of tokens.
pub(in crate::http) struct LogitBias;

impl PartialSchema for LogitBias {
    fn schema() -> RefOr<Schema> {
        let id = Object::builder().schema_type(Type::String).pattern(Some("^(0|[1-9][0-9]{0,8})$"));
        let bias = Object::builder()
            .schema_type(Type::Number)
            .minimum(Some(-100))
            .maximum(Some(100))
            .build();
        Object::builder()
            .schema_type(Type::Object)
            .property_names(Some(Schema::from(id.build())))
            .additional_properties(Some(Schema::from(bias)))
            .max_properties(Some(super::fields::MOST_BIASES))
            .into()
    }
}

impl ToSchema for LogitBias {}

/// A text, some texts, the tokens of a text, or those of some texts.
pub(in crate::http) struct Prompts;

impl PartialSchema for Prompts {
    fn schema() -> RefOr<Schema> {
        let text = || Schema::from(Object::builder().schema_type(Type::String).build());
        let token = Object::builder().schema_type(Type::Integer).minimum(Some(0));
        let token = Schema::from(token.maximum(Some(u32::MAX)).build());
        let list = |item: Schema, least: usize| {
            Array::builder().items(RefOr::T(item)).min_items(Some(least))
        };
        let most = super::fields::MOST_PROMPTS;
        let tokens = || Schema::from(list(token.clone(), 1).build());
        AnyOf::builder()
            .item(text())
            .item(list(text(), 1).max_items(Some(most)))
            .item(tokens())
            .item(list(tokens(), 1).max_items(Some(most)))
            .into()
    }
}

impl ToSchema for Prompts {}

/// Options of a stream.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body for the OpenAPI document")]
pub struct StreamOptions {
    /// A last chunk with `usage`.
    include_usage: Option<bool>,
}
