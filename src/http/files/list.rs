//! Lists files.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::object::FileObject;
use crate::domain::file::{FilePurpose, FileRecord};
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::{Limit, Query};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::store::Order;
use crate::util::excerpt::excerpt;

const MOST: u32 = 10_000;

/// A page of files.
#[derive(Debug, Serialize, ToSchema)]
pub struct FileList {
    /// `list`.
    object: &'static str,
    /// The files.
    data: Vec<FileObject>,
    /// Of the first one here.
    first_id: Option<String>,
    /// Of the last one here: the cursor of the next page.
    last_id: Option<String>,
    /// Whether there is another page.
    has_more: bool,
}

/// Lists files.
#[utoipa::path(
    get, path = "/files", tag = "files", operation_id = "listFiles",
    params(
        ("purpose" = Option<String>, Query, description = "Only files of this purpose"),
        ("limit" = inline(Option<Limit>), Query, description = "1 to 10000, default 10000"),
        ("order" = Option<String>, Query, description = "asc or desc (default) by creation"),
        ("after" = Option<String>, Query, description = "Id of the last item of the page before")
    ),
    responses((status = 200, body = FileList), (status = 400, body = ErrorBody))
)]
pub async fn list(
    State(state): State<AppState>,
    caller: Caller,
    query: Query,
) -> ApiResult<Json<FileList>> {
    let order = match query.get("order") {
        None | Some("" | "desc") => Order::Descending,
        Some("asc") => Order::Ascending,
        Some(other) => {
            let other = excerpt(other);
            let message = format!("order is {other:?}; it can be asc or desc");
            return Err(ApiError::field("order", message));
        }
    };
    let purpose = match query.get("purpose").filter(|purpose| !purpose.is_empty()) {
        None => None,
        Some(text) => match FilePurpose::parse(text) {
            Some(purpose) => Some(purpose),
            None if FilePurpose::ELSEWHERE.contains(&text) => {
                return Ok(Json(FileList::new(Vec::new(), false)));
            }
            None => {
                let known: Vec<&str> = FilePurpose::ALL.iter().map(|one| one.as_str()).collect();
                let text = excerpt(text);
                let message = format!("purpose is {text:?}; it can be {}", known.join(", "));
                return Err(ApiError::field("purpose", message));
            }
        },
    };
    let page = query.page(MOST, MOST)?;
    let page = state.store.list_files(&caller.project, purpose, order, &page).await?;
    Ok(Json(FileList::new(page.items, page.has_more)))
}

impl FileList {
    fn new(files: Vec<FileRecord>, has_more: bool) -> Self {
        Self {
            object: "list",
            first_id: files.first().map(|file| file.id.clone()),
            last_id: files.last().map(|file| file.id.clone()),
            data: files.into_iter().map(FileObject::from).collect(),
            has_more,
        }
    }
}
