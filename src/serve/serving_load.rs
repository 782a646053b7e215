//! The serving load: whether requests are being served. The executor pauses training jobs while they are.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

/// How long there must be no request before the load counts as over: the next turn of a conversation often
/// follows at once.
const COOLDOWN: Duration = Duration::from_millis(300);

/// Shared by the inference thread, which sets it, and the executor, which yields to it.
#[derive(Clone)]
pub struct ServingLoad {
    busy: watch::Sender<bool>,
    yields: Counter,
    yielded_seconds: Counter<f64, AtomicU64>,
}

impl Default for ServingLoad {
    fn default() -> Self {
        let (yields, yielded_seconds) = Default::default();
        Self { busy: watch::Sender::new(false), yields, yielded_seconds }
    }
}

impl ServingLoad {
    /// Sets whether there are requests.
    pub fn set(&self, busy: bool) {
        self.busy.send_if_modified(|known| std::mem::replace(known, busy) != busy);
    }

    /// Waits until the load differs from `known`: there are requests, or there have been none for a while.
    /// The future may be dropped and the method called again.
    pub async fn change_from(&self, known: bool) -> bool {
        let mut watched = self.busy.subscribe();
        loop {
            // It fails only without a sender, and this is one.
            drop(watched.wait_for(|busy| *busy != known).await);
            if !known {
                self.yields.inc();
                return true;
            }
            let again = watched.wait_for(|busy| *busy);
            if tokio::time::timeout(COOLDOWN, again).await.is_err() {
                return false;
            }
        }
    }

    /// Counts seconds that a job was paused.
    pub fn count_yielded_seconds(&self, seconds: f64) {
        self.yielded_seconds.inc_by(seconds.max(0.0));
    }

    /// Registers the metrics of paused jobs in `registry`, below its prefix.
    pub fn register(&self, registry: &mut Registry) {
        let help = "How often a job was paused for requests";
        registry.register("yields", help, self.yields.clone());
        let help = "Time that jobs were paused for requests";
        registry.register("yielded_seconds", help, self.yielded_seconds.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pause_between_requests_is_not_the_end_of_the_load() {
        let load = ServingLoad::default();
        load.set(true);
        assert!(load.change_from(false).await);
        let other = load.clone();
        let pauses = tokio::spawn(async move {
            other.set(false);
            tokio::time::sleep(COOLDOWN / 30).await;
            other.set(true);
            tokio::time::sleep(COOLDOWN * 2).await;
            other.set(false);
        });
        let began = tokio::time::Instant::now();
        assert!(!load.change_from(true).await);
        assert!(began.elapsed() > COOLDOWN * 2, "{:?}", began.elapsed());
        pauses.await.expect("ends");
        assert_eq!(load.yields.get(), 1);
    }
}
