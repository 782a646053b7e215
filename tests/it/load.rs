//! Many clients watch a job while it trains and while a large file comes in: none of them sees an
//! error, and SQLite never says that it is locked. `benches/load` measures the same for longer.

use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::real_model::models_dir;
use crate::server::{LOG, Server, TINY};

/// Clients at once, each with a connection of its own that it keeps.
const CLIENTS: u32 = 200;

/// What the clients do.
#[derive(Clone, Copy)]
struct Load {
    /// Requests of all clients together.
    per_second: u32,
    /// For how long.
    length: Duration,
}

/// Training data whose every step costs the same.
fn equal_lines(count: usize) -> String {
    let line = json!({"messages": [
        {"role": "user", "content": "How many days has a week?"},
        {"role": "assistant", "content": "A week has seven days, and a year has fifty-two weeks."},
    ]});
    format!("{line}\n").repeat(count)
}

/// A server whose warnings are kept.
fn server(data_dir: &Path, models_dir: &Path) -> Server {
    Server::start_over_with(data_dir, models_dir, &[("RUST_LOG", "warn")])
}

/// A job that outlasts every measurement, training already.
async fn long_job(server: &Server, model: &str) -> String {
    let file = server.upload(&equal_lines(200)).await;
    let body = json!({"model": model, "training_file": file, "seed": 1,
        "hyperparameters": {"n_epochs": 50, "batch_size": 1}});
    let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
    let id = job["id"].as_str().expect("an id").to_owned();
    server.under_way(&id).await;
    id
}

/// One client's connection, kept. No more than a client has to do: what is measured is the server, and
/// both share the cores.
struct Connection {
    stream: TcpStream,
    host: String,
    received: Vec<u8>,
}

impl Connection {
    async fn open(host: &str) -> Self {
        let stream = TcpStream::connect(host).await.expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        Self { stream, host: host.to_owned(), received: Vec::new() }
    }

    /// The body of the reply to a GET, which must be 200.
    async fn get(&mut self, path: &str) -> &[u8] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        self.stream.write_all(request.as_bytes()).await.expect("the connection holds");
        self.received.clear();
        loop {
            let count =
                self.stream.read_buf(&mut self.received).await.expect("the connection holds");
            assert_ne!(count, 0, "the server has closed the connection");
            let Some(end) = self.received.windows(4).position(|four| four == b"\r\n\r\n") else {
                continue;
            };
            let head = str::from_utf8(&self.received[..end]).expect("text");
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            let length = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let length: usize = length.expect("a length").1.parse().expect("a number");
            if self.received.len() == end + 4 + length {
                return &self.received[end + 4..];
            }
        }
    }
}

/// One client: asks in turn for the job and for a page of its events, at fixed times whether or not
/// the server keeps up. How long each answer took from when it was due, in milliseconds.
async fn watch(host: String, job: String, number: u32, load: Load) -> Vec<f64> {
    let mut connection = Connection::open(&host).await;
    let interval = Duration::from_secs(1) * CLIENTS / load.per_second;
    let begin = tokio::time::Instant::now() + interval * number / CLIENTS;
    let mut after = String::new();
    let mut waits = Vec::new();
    for turn in 0..(load.length.as_secs_f64() / interval.as_secs_f64()) as u32 {
        let due = begin + interval * turn;
        tokio::time::sleep_until(due).await;
        let is_page = turn % 2 == 1;
        let path = match is_page {
            true => format!("/v1/fine_tuning/jobs/{job}/events?limit=20&after={after}"),
            false => format!("/v1/fine_tuning/jobs/{job}"),
        };
        let body = connection.get(&path).await;
        waits.push(due.elapsed().as_secs_f64() * 1e3);
        if is_page {
            let page: Value = serde_json::from_slice(body).expect("JSON");
            let last = page["data"].as_array().and_then(|data| data.last());
            after = match (page["has_more"].as_bool(), last) {
                (Some(true), Some(last)) => last["id"].as_str().expect("an id").to_owned(),
                _ => String::new(),
            };
        }
    }
    waits
}

/// Every client at once; all their waits, shortest first.
async fn watch_all(server: &Server, job: &str, load: Load) -> Vec<f64> {
    let host = server.base.trim_start_matches("http://");
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(watch(host.to_owned(), job.to_owned(), number, load));
    }
    let mut waits = clients.join_all().await.concat();
    waits.sort_unstable_by(f64::total_cmp);
    waits
}

/// Uploads a training file of this size; how long that took.
async fn upload(server: &Server, mebibytes: usize) -> Duration {
    let line = equal_lines(1);
    let chunk = bytes::Bytes::from(line.repeat((1 << 20) / line.len()));
    let chunks = std::iter::repeat_n(chunk, mebibytes).map(Ok::<_, std::io::Error>);
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    let form = Form::new().text("purpose", "fine-tune").part("file", Part::stream(body));
    let begun = Instant::now();
    server.form(form).await.ok();
    begun.elapsed()
}

/// No statement found the database locked, and nothing else went wrong on the server's side.
fn assert_calm(server: &Server) {
    let log = std::fs::read_to_string(server.data_dir().join(LOG)).expect("a log");
    let is_trouble = |line: &&str| line.contains("locked") || line.contains("ERROR");
    let trouble: Vec<&str> = log.lines().filter(is_trouble).collect();
    assert!(trouble.is_empty(), "{trouble:#?}");
}

#[tokio::test]
async fn two_hundred_clients_watch_a_job_and_an_upload_and_none_sees_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let server = server(folder.path(), &models);
    let job = long_job(&server, TINY).await;
    let load = Load { per_second: 200, length: Duration::from_secs(5) };
    let (waits, _) = tokio::join!(watch_all(&server, &job, load), upload(&server, 64));
    assert_eq!(waits.len(), 1000);
    assert_calm(&server);
}

/// Steps that the job does in a second while `work` goes on, and what comes of it.
async fn steps_per_second<T>(
    server: &Server,
    job: &str,
    work: impl Future<Output = T>,
) -> (f64, T) {
    let steps = async || server.job(job).await["trained_steps"].as_u64().expect("a number") as f64;
    let (first, begun) = (steps().await, Instant::now());
    let outcome = work.await;
    ((steps().await - first) / begun.elapsed().as_secs_f64(), outcome)
}

/// The bars are for two cores that do nothing else, so `benches/load` alone asks for this.
#[tokio::test]
async fn training_and_polling_hardly_slow_each_other() {
    const LENGTH: Duration = Duration::from_secs(30);
    if std::env::var_os("HONE_MEASURE_LOAD").is_none() {
        eprintln!("not run: HONE_MEASURE_LOAD is not set; benches/load sets it");
        return;
    }
    let Some(models) = models_dir() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let server = server(folder.path(), &models);
    let job = long_job(&server, "smollm2-135m-instruct").await;
    let load = Load { per_second: 1000, length: LENGTH };

    let quiet = || steps_per_second(&server, &job, tokio::time::sleep(LENGTH));
    let (before, ()) = quiet().await;
    let polls = watch_all(&server, &job, load);
    let (polled, polls) = steps_per_second(&server, &job, polls).await;
    let (after, ()) = quiet().await;
    let both = async { tokio::join!(watch_all(&server, &job, load), upload(&server, 512)) };
    let (uploaded, (with_upload, upload)) = steps_per_second(&server, &job, both).await;
    let path = format!("/v1/fine_tuning/jobs/{job}/cancel");
    server.send(Method::POST, &path).await.ok();
    assert_calm(&server);

    let alone = f64::midpoint(before, after);
    println!("training alone: {before:.2} and {after:.2} steps/s");
    let mut p99s = Vec::new();
    for (name, waits, rate) in
        [("polling", &polls, polled), ("polling and uploading 512 MiB", &with_upload, uploaded)]
    {
        let quantile = |share: f64| waits[(share * (waits.len() - 1) as f64) as usize];
        println!(
            "{name}: {:.0} requests/s, p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms, no errors; \
             training {rate:.2} steps/s, {:.1} % slower",
            waits.len() as f64 / LENGTH.as_secs_f64(),
            quantile(0.5),
            quantile(0.99),
            quantile(1.0),
            100.0 * (1.0 - rate / alone)
        );
        p99s.push(quantile(0.99));
    }
    println!("the upload took {:.1} s", upload.as_secs_f64());
    assert!(p99s.iter().all(|p99| *p99 <= 25.0), "p99 is above 25 ms");
    assert!(polled >= 0.9 * alone, "polling slows training by more than 10 %");
}
