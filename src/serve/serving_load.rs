//! Whether answers are being made: what the executor looks at before it lets a job have the device.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

/// How long nothing is asked before answering counts as over: the next turn of a conversation often
/// comes at once.
const LINGER: Duration = Duration::from_millis(300);

/// Shared by whoever answers and whoever gives way to answers.
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
    /// Says whether requests are being answered or wait.
    pub fn set(&self, busy: bool) {
        self.busy.send_if_modified(|known| std::mem::replace(known, busy) != busy);
    }

    /// Waits until requests are being answered, or have not been for a while, other than `known`. May
    /// be dropped and called again.
    pub async fn change_from(&self, known: bool) -> bool {
        let mut watched = self.busy.subscribe();
        loop {
            // It ends only with the last sender, of which this is one.
            drop(watched.wait_for(|busy| *busy != known).await);
            if !known {
                self.yields.inc();
                return true;
            }
            let again = watched.wait_for(|busy| *busy);
            if tokio::time::timeout(LINGER, again).await.is_err() {
                return false;
            }
        }
    }

    /// A job has waited for so many more seconds.
    pub fn has_yielded(&self, seconds: f64) {
        self.yielded_seconds.inc_by(seconds.max(0.0));
    }

    /// Names what jobs have yielded in `registry`, below its prefix.
    pub fn register(&self, registry: &mut Registry) {
        let help = "How often a job was told to wait for answers";
        registry.register("yields", help, self.yields.clone());
        let help = "Time that jobs have waited for answers";
        registry.register("yielded_seconds", help, self.yielded_seconds.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pause_between_requests_is_not_the_end_of_demand() {
        let load = ServingLoad::default();
        load.set(true);
        assert!(load.change_from(false).await);
        let other = load.clone();
        let pauses = tokio::spawn(async move {
            other.set(false);
            tokio::time::sleep(LINGER / 30).await;
            other.set(true);
            tokio::time::sleep(LINGER * 2).await;
            other.set(false);
        });
        let began = tokio::time::Instant::now();
        assert!(!load.change_from(true).await);
        assert!(began.elapsed() > LINGER * 2, "{:?}", began.elapsed());
        pauses.await.expect("ends");
        assert_eq!(load.yields.get(), 1);
    }
}
