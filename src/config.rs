//! Settings: a flag and an environment variable of the same name for each, alike in every command.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::HeaderValue;
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use reqwest::Url;

use crate::device::DeviceSetting;

/// Where hone keeps things and finds base models.
#[derive(Debug, Clone, Args)]
pub struct Folders {
    /// Folder of the database, uploaded files and results.
    #[arg(long, env = "HONE_DATA_DIR", default_value = "hone-data", value_name = "DIR")]
    pub data_dir: PathBuf,

    /// Where it finds base models.
    #[command(flatten)]
    pub models: ModelsFolder,
}

/// Where hone finds base models.
#[derive(Debug, Clone, Args)]
pub struct ModelsFolder {
    /// Folder of base models: one sub-folder (Hugging Face layout) or one .gguf file each.
    // global: `hone models pull NAME --models-dir DIR` reads more naturally than the other order
    #[arg(
        long,
        env = "HONE_MODELS_DIR",
        default_value = "models",
        value_name = "DIR",
        global = true
    )]
    pub models_dir: PathBuf,
}

/// How the server listens.
#[derive(Debug, Clone, Args)]
pub struct Listen {
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(
        long,
        env = "HONE_LISTEN",
        default_value = "127.0.0.1:8080",
        value_name = "ADDR",
        value_parser = address
    )]
    pub listen: SocketAddr,
}

/// An address with a port; `localhost` is this machine's own by IPv4.
fn address(text: &str) -> Result<SocketAddr, String> {
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    numeric.parse().map_err(|_not_an_address| {
        "it must be an IP address and a port, such as 127.0.0.1:8080 or 0.0.0.0:8080".to_owned()
    })
}

/// What trains.
#[derive(Debug, Clone, Args)]
pub struct TrainingDevice {
    /// Device that jobs are trained on: auto, cpu, cuda or cuda:N. `auto` takes the first CUDA device
    /// where hone is built with CUDA and one is there, and the CPU elsewhere.
    #[arg(long, env = "HONE_DEVICE", default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceSetting,
}

/// How models answer beside jobs that train.
#[derive(Debug, Clone, Default, Args)]
pub struct Serving {
    /// Memory that base models, adapters and sequences in progress may take, such as 8GB or 512MB; models
    /// that were used least recently make room. Half of what is free at the start without it.
    #[arg(long, env = "HONE_SERVE_MEMORY", value_name = "SIZE", value_parser = bytes)]
    pub serve_memory: Option<u64>,

    /// What goes first on the device while a job trains and requests come.
    #[arg(long, env = "HONE_SERVE_PRIORITY", value_enum, default_value_t)]
    pub serve_priority: Priority,

    /// Which requests share computed prefixes of their prompts. One that finds a prefix is answered sooner
    /// and says so (`cached_tokens`), which tells its client that it was asked for before.
    #[arg(
        long,
        env = "HONE_PREFIX_CACHE_SCOPE",
        value_enum,
        default_value_t,
        value_name = "SCOPE"
    )]
    pub prefix_cache_scope: PrefixCacheScope,
}

/// Which requests share computed prefixes of their prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum PrefixCacheScope {
    /// Those of one project.
    #[default]
    Project,
    /// Those with one API key.
    Key,
}

/// What goes first on a device that trains and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Priority {
    /// Answers: a job waits between micro-batches while requests are answered.
    #[default]
    Serve,
    /// Neither: the system shares the processor out, a little more to answers.
    Share,
    /// Training: answers get what it leaves.
    Train,
}

/// A number of bytes, with a unit of a thousand or of 1,024 (`GiB`) where there is one.
fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|character: char| !(character.is_ascii_digit() || character == '.'));
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => f64::NAN,
    };
    let bytes = number.parse::<f64>().map_or(f64::NAN, |number| number * factor);
    if !(1.0..1e18).contains(&bytes) {
        return Err("it must be a number of bytes, such as 8GB, 512MB or 6GiB".to_owned());
    }
    Ok(bytes as u64)
}

/// How much clients may ask for.
#[derive(Debug, Clone, Args)]
pub struct Limits {
    /// Most requests in a minute with one API key, or of all clients together while there are no keys;
    /// as many may come at once after a quiet minute. No limit without it.
    #[arg(long, env = "HONE_REQUESTS_PER_MINUTE", value_name = "COUNT")]
    pub requests_per_minute: Option<NonZeroU32>,

    /// Most jobs of one project that wait for their turn or are paused.
    #[arg(long, env = "HONE_MAX_QUEUED_JOBS", default_value_t = MAX_QUEUED_JOBS, value_name = "COUNT")]
    pub max_queued_jobs: NonZeroU32,

    /// Longest wait of a job for what others hold (memory, room on the disk, file descriptors), such as 30m or
    /// 24h; then it fails.
    #[arg(long, env = "HONE_RESOURCE_WAIT", default_value = "24h", value_name = "TIME",
          value_parser = humantime::parse_duration)]
    pub resource_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_per_minute: None,
            max_queued_jobs: MAX_QUEUED_JOBS,
            resource_wait: RESOURCE_WAIT,
        }
    }
}

/// Which web pages may use the API.
#[derive(Debug, Clone, Default, Args)]
pub struct Cors {
    /// Origin of web pages whose scripts may use the API, such as https://dashboard.example.com;
    /// repeatable. Browsers let no other page use it.
    #[arg(
        long = "cors-origin",
        env = "HONE_CORS_ORIGINS",
        value_name = "URL",
        value_delimiter = ',',
        value_parser = origin
    )]
    pub origins: Vec<HeaderValue>,
}

/// An origin as browsers write it: scheme, host, and a port unless it is the scheme's own.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let url = Url::parse(text.trim()).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
    let is_bare = |url: &Url| {
        url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none()
    };
    let origin = url.filter(is_bare).map(|url| url.origin().ascii_serialization());
    origin.and_then(|origin| HeaderValue::from_str(&origin).ok()).ok_or_else(|| {
        "it must be a scheme and a host, with a port where one is needed, and nothing else, such as \
         https://dashboard.example.com or http://localhost:3000"
            .to_owned()
    })
}

/// Who may be told of events.
#[derive(Debug, Clone, Default, Args)]
pub struct Webhooks {
    /// Network that webhooks may go to although it is not public, and over plain http as well, such as
    /// 10.1.0.0/16 or 127.0.0.1; repeatable. Without it, webhooks go to public addresses over https
    /// only.
    #[arg(
        long = "webhook-allow",
        env = "HONE_WEBHOOK_ALLOW",
        value_name = "CIDR",
        value_delimiter = ',',
        value_parser = network
    )]
    pub allowed: Vec<IpNet>,
}

/// A network, or a single address as the network of itself.
fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_not_single| text.parse()).map_err(|_| {
        "it must be an address such as 10.1.2.3 or a network such as 10.1.0.0/16 or fd00::/8"
            .to_owned()
    })
}

/// Most waiting jobs of a project unless it is set.
const MAX_QUEUED_JOBS: NonZeroU32 = match NonZeroU32::new(1000) {
    Some(count) => count,
    None => NonZeroU32::MAX,
};

/// Longest wait of a job for what others hold unless it is set.
pub const RESOURCE_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Largest upload in bytes, as OpenAI has it.
pub const MAX_UPLOAD_BYTES: u64 = 512 * 1024 * 1024;

/// Largest part of an upload in parts, in bytes; OpenAI's clients cut parts of exactly this size.
pub const MAX_PART_BYTES: u64 = 64 * 1024 * 1024;

/// Largest upload in parts in bytes, as OpenAI has it.
pub const MAX_PARTED_UPLOAD_BYTES: i64 = 8 * 1024 * 1024 * 1024;

/// Seconds in which an upload in parts must be completed, as OpenAI has it.
pub const UPLOAD_LIFETIME_SECONDS: i64 = 3600;

/// Largest JSON body in bytes.
pub const MAX_JSON_BYTES: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_numbers_or_this_machine() {
        assert_eq!(address("localhost:8080"), address("127.0.0.1:8080"));
        assert!(address("[::1]:0").is_ok() && address("0.0.0.0:80").is_ok());
        for wrong in ["localhost", "8080", "example.com:80", ""] {
            assert!(address(wrong).is_err_and(|text| text.contains("such as")), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(bytes("8GB"), Ok(8_000_000_000));
        assert_eq!(bytes("1.5 GiB"), Ok(1_610_612_736));
        assert_eq!(bytes("4096"), Ok(4096));
        for wrong in ["", "GB", "8 elephants", "-1", "0", "1e99TB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
