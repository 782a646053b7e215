//! Many clients watch a job while it trains and while a large file comes in: none of them sees an
//! error, and SQLite never says that it is locked. `benches/load` measures the same for longer.

use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::server::{LOG, Server, TINY};
use crate::train::real_model::models_dir;

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

    /// The body of the reply to a GET, which must be 200. SDKs show a key also where none is needed.
    async fn get(&mut self, path: &str) -> &[u8] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer sk-any\r\n\r\n",
            self.host
        );
        self.send(request.as_bytes()).await;
        self.reply().await
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the connection holds");
    }

    /// The body of the next reply, which must be 200.
    async fn reply(&mut self) -> &[u8] {
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

/// Of a page of events, what a client needs to ask for the next.
#[derive(Deserialize)]
struct EventPage<'a> {
    #[serde(borrow)]
    data: Vec<EventId<'a>>,
    has_more: bool,
}

#[derive(Deserialize)]
struct EventId<'a> {
    id: &'a str,
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
            let page: EventPage = serde_json::from_slice(body).expect("JSON");
            let last = page.data.last().filter(|_| page.has_more);
            after = last.map_or(String::new(), |last| last.id.to_owned());
        }
    }
    waits
}

/// Every client at once; all their waits.
async fn watch_all(server: &Server, job: &str, load: Load) -> Vec<f64> {
    let host = server.base.trim_start_matches("http://");
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(watch(host.to_owned(), job.to_owned(), number, load));
    }
    clients.join_all().await.concat()
}

/// Uploads a training file of this size; how long that took.
async fn upload(server: &Server, mebibytes: usize) -> Duration {
    let line = equal_lines(1);
    let chunk = line.repeat((1 << 20) / line.len());
    let begin = "--xx\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--xx\r\n\
        Content-Disposition: form-data; name=\"file\"; filename=\"train.jsonl\"\r\n\r\n";
    let end = "\r\n--xx--\r\n";
    let length = begin.len() + mebibytes * chunk.len() + end.len();
    let begun = Instant::now();
    let mut connection = Connection::open(server.base.trim_start_matches("http://")).await;
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\n\
         Content-Type: multipart/form-data; boundary=xx\r\n\r\n{begin}",
        connection.host
    );
    connection.send(head.as_bytes()).await;
    for _ in 0..mebibytes {
        connection.send(chunk.as_bytes()).await;
    }
    connection.send(end.as_bytes()).await;
    let file: serde_json::Value = serde_json::from_slice(connection.reply().await).expect("JSON");
    assert_eq!(file["bytes"], mebibytes * chunk.len());
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

/// What happened during a turn.
struct Turn {
    /// Steps that the job did in a second.
    steps_per_second: f64,
    /// How much of a core the server used.
    server_share: f64,
    /// How long it took.
    seconds: f64,
}

impl Turn {
    /// While `work` goes on, and what comes of it.
    async fn of<T>(server: &Server, job: &str, work: impl Future<Output = T>) -> (Self, T) {
        let (used, begun) = (processor_time(server.pid()), Instant::now());
        let mut reports = Vec::new();
        let outcome = tokio::select! {
            outcome = work => outcome,
            () = watch_steps(server, job, &mut reports) => unreachable!("it has no end"),
        };
        let seconds = begun.elapsed().as_secs_f64();
        let server_share = (processor_time(server.pid()) - used) / seconds;
        let [(first, began), .., (last, ended)] = reports[..] else {
            panic!("the job reported fewer than two times: {reports:?}")
        };
        let steps_per_second = (last - first) as f64 / (ended - began).as_secs_f64();
        (Self { steps_per_second, server_share, seconds }, outcome)
    }
}

/// The numbers of steps that the job reports, and when: steps are written down about once in a second,
/// so that a glance at any other moment is off by as many as that has.
async fn watch_steps(server: &Server, job: &str, reports: &mut Vec<(u64, Instant)>) {
    let mut known = None;
    loop {
        let steps = server.job(job).await["trained_steps"].as_u64().expect("a number");
        if known.is_some_and(|known| known != steps) {
            reports.push((steps, Instant::now()));
        }
        known = Some(steps);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Seconds that a process was on a core.
fn processor_time(pid: u32) -> f64 {
    /// What the kernel counts in, on every Linux that hone runs on.
    const TICK: f64 = 0.01;
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its numbers");
    // Behind the name, which may hold anything: user time and system time are the 14th and 15th.
    let (_, numbers) = text.rsplit_once(')').expect("a name");
    let times = numbers.split_whitespace().skip(11).take(2);
    times.map(|ticks| ticks.parse::<f64>().expect("a number")).sum::<f64>() * TICK
}

/// What so large a share of the values stay below.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[(share * (values.len() - 1) as f64) as usize]
}

/// What a load came to.
#[derive(Default)]
struct Measured {
    waits: Vec<f64>,
    turns: Vec<Turn>,
    /// By how much each turn was slower than the quiet around it, in per cent.
    slowdowns: Vec<f64>,
}

impl Measured {
    fn add(&mut self, turn: Turn, waits: Vec<f64>, quiet: f64) {
        self.slowdowns.push(100.0 * (1.0 - turn.steps_per_second / quiet));
        self.waits.extend(waits);
        self.turns.push(turn);
    }

    /// Prints it in one line; by how much training was slower, the median of the turns.
    fn report(mut self, name: &str) -> f64 {
        let seconds: f64 = self.turns.iter().map(|turn| turn.seconds).sum();
        let used: f64 = self.turns.iter().map(|turn| turn.server_share * turn.seconds).sum();
        let mut wait = |share| quantile(&mut self.waits, share);
        let (p50, p99, worst) = (wait(0.5), wait(0.99), wait(1.0));
        let mut slower = |share| quantile(&mut self.slowdowns, share);
        let (slowdown, least, most) = (slower(0.5), slower(0.0), slower(1.0));
        println!(
            "{name}: {:.0} requests/s, p50 {p50:.1} ms, p99 {p99:.1} ms, worst {worst:.1} ms, no \
             errors; the server used {:.0} % of a core; training {slowdown:.1} % slower (single turns: \
             {least:.1} to {most:.1} %)",
            self.waits.len() as f64 / seconds,
            100.0 * used / seconds,
        );
        assert!(p99 <= 25.0, "{name}: p99 is above 25 ms");
        slowdown
    }
}

/// The bars are for two cores that do nothing else, so `benches/load` alone asks for this. Quiet turns
/// stand between the others, since a machine's speed drifts by more than what is measured.
#[tokio::test]
async fn training_and_polling_hardly_slow_each_other() {
    const POLLED: usize = 20;
    const TURN: Duration = Duration::from_secs(5);
    const UPLOADED: usize = 11;
    /// Polling while 512 MiB are uploaded, and after.
    const UPLOAD: Duration = Duration::from_secs(30);
    if std::env::var_os("HONE_MEASURE_LOAD").is_none() {
        eprintln!("not run: HONE_MEASURE_LOAD is not set; benches/load sets it");
        return;
    }
    let Some(models) = models_dir() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let server = server(folder.path(), &models);
    let job = long_job(&server, "smollm2-135m-instruct").await;
    let quiet = async |length| {
        let (turn, ()) = Turn::of(&server, &job, tokio::time::sleep(length)).await;
        turn.steps_per_second
    };

    let (mut polling, mut uploading, mut took) =
        (Measured::default(), Measured::default(), Duration::ZERO);
    let mut before = quiet(TURN).await;
    for turn in 0..POLLED + UPLOADED {
        let is_upload = turn >= POLLED;
        let length = if is_upload { UPLOAD } else { TURN };
        let polls = watch_all(&server, &job, Load { per_second: 1000, length });
        let work = async {
            let upload =
                async { if is_upload { upload(&server, 512).await } else { Duration::ZERO } };
            tokio::join!(polls, upload)
        };
        let (turn, (waits, upload)) = Turn::of(&server, &job, work).await;
        let after = quiet(TURN).await;
        let measured = if is_upload { &mut uploading } else { &mut polling };
        measured.add(turn, waits, f64::midpoint(before, after));
        took = took.max(upload);
        before = after;
    }
    let path = format!("/v1/fine_tuning/jobs/{job}/cancel");
    server.send(Method::POST, &path).await.ok();
    assert_calm(&server);

    println!(
        "training alone: {before:.2} steps/s; the slowest upload took {:.1} s",
        took.as_secs_f64()
    );
    let loads = [("polling, and uploading 512 MiB in 30 s", uploading), ("polling", polling)];
    let slowdowns = loads.map(|(name, measured)| measured.report(name));
    assert!(slowdowns.iter().all(|slowdown| *slowdown <= 10.0), "{slowdowns:?}: above 10 %");
}
