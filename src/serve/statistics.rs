//! What answering has come to since the server began, for whoever watches: written by the threads that
//! answer, read by `GET /metrics`.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters and gauges.
#[derive(Debug, Default)]
pub struct Statistics {
    requests: Counter,
    failed: Counter,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    read_tokens: Counter,
    written_tokens: Counter,
    passes: Counter,
    busy_seconds: Counter<f64, AtomicU64>,
    running: Gauge,
    waiting: Gauge,
    bases: Gauge,
    base_bytes: Gauge,
    cache_bytes: Gauge,
}

impl Statistics {
    /// Names everything in `registry`, below its prefix.
    pub fn register(&self, registry: &mut Registry) {
        let counters = [
            ("requests", "Requests for answers taken in", &self.requests),
            ("requests_failed", "Requests that could not be answered", &self.failed),
            ("prompt_tokens", "Tokens of prompts whose answers have begun", &self.prompt_tokens),
            (
                "cached_tokens",
                "Tokens of these prompts that had been read before, as the beginning of another text",
                &self.cached_tokens,
            ),
            (
                "read_tokens",
                "Tokens that models have read, of prompts and answers",
                &self.read_tokens,
            ),
            ("written_tokens", "Tokens that models have written", &self.written_tokens),
            ("passes", "Passes through a model, each of one or more texts", &self.passes),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        let help = "Time that passes have taken: tokens by it are the speed";
        registry.register("busy_seconds", help, self.busy_seconds.clone());
        let gauges = [
            ("texts_running", "Texts in progress", &self.running),
            ("texts_waiting", "Prompts that wait for room", &self.waiting),
            ("base_models", "Base models in memory", &self.bases),
            ("base_model_bytes", "Bytes of base models and adapters in memory", &self.base_bytes),
            (
                "cache_bytes",
                "Bytes of keys and values, of texts in progress and kept ones",
                &self.cache_bytes,
            ),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
    }

    pub(super) fn requested(&self) {
        self.requests.inc();
    }

    pub(super) fn failed(&self) {
        self.failed.inc();
    }

    pub(super) fn began(&self, prompt_tokens: usize, cached_tokens: usize) {
        self.prompt_tokens.inc_by(prompt_tokens as u64);
        self.cached_tokens.inc_by(cached_tokens as u64);
    }

    pub(super) fn passed(&self, read: usize, written: usize) {
        self.passes.inc();
        self.read_tokens.inc_by(read as u64);
        self.written_tokens.inc_by(written as u64);
    }

    pub(super) fn was_busy(&self, took: Duration) {
        self.busy_seconds.inc_by(took.as_secs_f64());
    }

    pub(super) fn stands(&self, running: usize, waiting: usize) {
        self.running.set(running as i64);
        self.waiting.set(waiting as i64);
    }

    pub(super) fn holds(&self, bases: usize, base_bytes: u64, cache_bytes: u64) {
        self.bases.set(bases as i64);
        self.base_bytes.set(base_bytes as i64);
        self.cache_bytes.set(cache_bytes as i64);
    }
}
