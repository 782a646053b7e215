//! The next event of a generation, or the error that ends it.

use crate::http::error::{ApiError, ApiResult};
use crate::serve::{Event, Events};

/// Waits for the next event; fails when the generation failed or ended early.
pub(super) async fn next_event(events: &mut Events) -> ApiResult<Event> {
    match events.next().await {
        Some(Event::Failed(error)) => Err(error.into()),
        Some(event) => Ok(event),
        None => {
            Err(ApiError::internal("the generation ended before its completions were complete"))
        }
    }
}
