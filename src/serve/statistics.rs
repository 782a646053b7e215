//! Counters and gauges of serving since the server began: written by the threads that serve, read by
//! `GET /metrics`. The names of the metrics are published and stay.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters and gauges.
#[derive(Debug, Default)]
pub struct Statistics {
    requests: Counter,
    failed_requests: Counter,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    computed_tokens: Counter,
    generated_tokens: Counter,
    steps: Counter,
    busy_seconds: Counter<f64, AtomicU64>,
    running: Gauge,
    waiting: Gauge,
    models: Gauge,
    model_bytes: Gauge,
    cache_bytes: Gauge,
}

impl Statistics {
    /// Registers every metric in `registry`, below its prefix.
    pub fn register(&self, registry: &mut Registry) {
        let counters = [
            ("requests", "Requests received", &self.requests),
            ("requests_failed", "Requests that could not be answered", &self.failed_requests),
            ("prompt_tokens", "Prompt tokens of admitted sequences", &self.prompt_tokens),
            (
                "cached_tokens",
                "Prompt tokens that were not computed again: a prefix of another sequence",
                &self.cached_tokens,
            ),
            (
                "read_tokens",
                "Tokens that models have computed, of prompts and answers",
                &self.computed_tokens,
            ),
            ("written_tokens", "Tokens that models have generated", &self.generated_tokens),
            ("passes", "Steps of a model, each of one or more sequences", &self.steps),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        let help = "Time that steps have taken: tokens divided by it are the speed";
        registry.register("busy_seconds", help, self.busy_seconds.clone());
        let gauges = [
            ("texts_running", "Running sequences", &self.running),
            ("texts_waiting", "Prompts that wait and preempted sequences", &self.waiting),
            ("base_models", "Models in memory", &self.models),
            ("base_model_bytes", "Bytes of models and adapters in memory", &self.model_bytes),
            (
                "cache_bytes",
                "Bytes of keys and values, of running sequences and of the prefix cache",
                &self.cache_bytes,
            ),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
    }

    pub(super) fn count_request(&self) {
        self.requests.inc();
    }

    pub(super) fn count_failed_request(&self) {
        self.failed_requests.inc();
    }

    pub(super) fn count_prompt(&self, prompt_tokens: usize, cached_tokens: usize) {
        self.prompt_tokens.inc_by(prompt_tokens as u64);
        self.cached_tokens.inc_by(cached_tokens as u64);
    }

    pub(super) fn count_step(&self, computed: usize, generated: usize) {
        self.steps.inc();
        self.computed_tokens.inc_by(computed as u64);
        self.generated_tokens.inc_by(generated as u64);
    }

    pub(super) fn count_busy_time(&self, took: Duration) {
        self.busy_seconds.inc_by(took.as_secs_f64());
    }

    pub(super) fn set_queue(&self, running: usize, waiting: usize) {
        self.running.set(running as i64);
        self.waiting.set(waiting as i64);
    }

    pub(super) fn set_memory(&self, models: usize, model_bytes: u64, cache_bytes: u64) {
        self.models.set(models as i64);
        self.model_bytes.set(model_bytes as i64);
        self.cache_bytes.set(cache_bytes as i64);
    }
}
