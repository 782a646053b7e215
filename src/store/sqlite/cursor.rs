//! The position in a list at which a page begins.

use sqlx::SqliteConnection;

use crate::store::StoreError;

/// The position of the item `id` in a list of `owner`: what `query` finds for the two, `$1` and `$2`. Fails
/// with [`StoreError::UnknownCursor`] when that is nothing.
pub(super) async fn position(
    connection: &mut SqliteConnection,
    query: &'static str,
    id: &str,
    owner: &str,
) -> Result<i64, StoreError> {
    let found = sqlx::query_scalar(query).bind(id).bind(owner).fetch_optional(connection).await?;
    found.ok_or_else(|| StoreError::UnknownCursor(id.to_owned()))
}
