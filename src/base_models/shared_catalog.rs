//! The catalog for many requests at once. The models folder is read on threads that may wait for a disk, one
//! scan at a time: requests that came before a scan began share its result.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Mutex;

use super::catalog::{BaseModelEntry, Catalog};

/// A catalog that is asked from async code.
pub struct SharedCatalog {
    catalog: Catalog,
    /// The last scan, and when it began.
    last: Mutex<Option<(Instant, Arc<Vec<BaseModelEntry>>)>>,
}

impl SharedCatalog {
    /// Over this catalog.
    pub fn new(catalog: Catalog) -> Self {
        Self { catalog, last: Mutex::new(None) }
    }

    /// As [`Catalog::list`], of a scan that began after the call.
    ///
    /// # Errors
    /// As [`Catalog::list`].
    pub async fn list(&self) -> io::Result<Arc<Vec<BaseModelEntry>>> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some((began, list)) = &*last
            && *began >= asked
        {
            return Ok(Arc::clone(list));
        }
        let began = Instant::now();
        let list = Arc::new(self.on_another_thread(Catalog::list).await?);
        *last = Some((began, Arc::clone(&list)));
        Ok(list)
    }

    /// As [`Catalog::find`].
    ///
    /// # Errors
    /// As [`Catalog::find`].
    pub async fn find(&self, id: &str) -> io::Result<Option<BaseModelEntry>> {
        let list = self.list().await?;
        if let Some(entry) = list.iter().find(|entry| entry.id == id) {
            return Ok(Some(entry.clone()));
        }
        if !id.contains('/') {
            return Ok(None);
        }
        // Which repository a model is of is in its files.
        let id = id.to_owned();
        self.on_another_thread(move |catalog| catalog.find(&id)).await
    }

    /// As [`BaseModelEntry::hub_name`].
    pub async fn hub_name(&self, entry: BaseModelEntry) -> Option<String> {
        self.on_another_thread(move |_| Ok(entry.hub_name())).await.unwrap_or_default()
    }

    async fn on_another_thread<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Catalog) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let catalog = self.catalog.clone();
        let read = tokio::task::spawn_blocking(move || read(&catalog));
        read.await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_model_that_comes_or_goes_is_seen_at_the_next_call() {
        let folder = tempfile::tempdir().expect("a folder");
        let shared = SharedCatalog::new(Catalog::new(folder.path().to_owned()));
        assert_eq!(shared.find("a").await.expect("reads"), None);
        for _ in 0..50 {
            std::fs::write(folder.path().join("a.gguf"), b"x").expect("writes");
            assert!(shared.find("a").await.expect("reads").is_some());
            std::fs::remove_file(folder.path().join("a.gguf")).expect("removes");
            let none = futures_util::future::join_all((0..20).map(|_| shared.find("a"))).await;
            assert!(none.into_iter().all(|found| found.expect("reads").is_none()));
        }
    }
}
