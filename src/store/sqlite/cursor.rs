//! Where a list goes on.

use sqlx::SqliteConnection;

use crate::store::StoreError;

/// Where the item `id` stands in a list of `owner`'s: what `query` finds for the two, `$1` and `$2`. Fails
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
