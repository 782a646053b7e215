//! A server under test: the real binary on a free port over a fresh data folder, and a client.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::multipart::{Form, Part};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};

/// Base model of the tests: two layers, random weights.
pub const TINY: &str = "tiny-llama";

/// Where the log goes in the data folder of a server with a setting `RUST_LOG`.
pub const LOG: &str = "server.log";

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// The binary at work. Killed when the test ends.
pub struct Server {
    /// `http://127.0.0.1:PORT`.
    pub base: String,
    pub client: Client,
    data_dir: PathBuf,
    models_dir: PathBuf,
    /// Settings beside the folders, as environment variables.
    settings: Vec<(String, String)>,
    child: Child,
    /// Removed when the test ends.
    _folder: Option<tempfile::TempDir>,
}

/// A reply with its body read.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Reply {
    /// Reads a response to its end.
    pub async fn read(response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.expect("a body");
        // Not `text()`, which would take off a byte order mark.
        let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
        Self { status, headers, text }
    }

    /// The body as JSON, which its content type must say.
    pub fn json(&self) -> Value {
        assert_eq!(self.headers["content-type"], "application/json", "{}", self.text);
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The body of a 200.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// The error of a reply with this status: OpenAI's envelope, whole.
    pub fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        let body = self.json();
        let error = body["error"].as_object().unwrap_or_else(|| panic!("no error: {body}"));
        let mut keys: Vec<&str> = error.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["code", "message", "param", "type"]);
        assert!(error["message"].as_str().is_some_and(|text| text.len() > 10), "{body}");
        assert!(self.headers.contains_key("x-request-id"));
        body["error"].clone()
    }
}

impl Server {
    /// A server with the tiny base model.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with settings, as environment variables.
    pub fn start_with(settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let mut server = Self::launch(folder.path(), &models, owned(settings));
        server._folder = Some(folder);
        server
    }

    /// A server over given folders.
    pub fn start_over(data_dir: &Path, models_dir: &Path) -> Self {
        Self::start_over_with(data_dir, models_dir, &[])
    }

    /// The same with settings, as environment variables.
    pub fn start_over_with(data_dir: &Path, models_dir: &Path, settings: &[(&str, &str)]) -> Self {
        Self::launch(data_dir, models_dir, owned(settings))
    }

    fn launch(data_dir: &Path, models_dir: &Path, settings: Vec<(String, String)>) -> Self {
        // Whoever says what is logged wants to read it.
        let stderr = match settings.iter().any(|(name, _value)| name == "RUST_LOG") {
            true => File::create(data_dir.join(LOG)).expect("made").into(),
            false => Stdio::null(),
        };
        let binary = Command::new(env!("CARGO_BIN_EXE_hone"));
        Self::launch_by(binary, data_dir, models_dir, settings, stderr)
    }

    /// A server whose data folder is a disk of its own with so many MiB. `None` where this user may not mount
    /// one, even in a namespace of its own.
    pub fn start_on_a_disk_of(mebibytes: u32) -> Option<Self> {
        // The folder of the models hides behind no mount.
        let folder = tempfile::tempdir().expect("a folder");
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let namespace = ["--user", "--map-root-user", "--mount", "sh", "-c"];
        let mount = format!("mount -t tmpfs -o size={mebibytes}m none \"$0\"");
        let mut can_mount = Command::new("unshare");
        can_mount.args(namespace).arg(&mount).arg(folder.path());
        if !can_mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
            return None;
        }
        let mut command = Command::new("unshare");
        command.args(namespace).arg(format!("{mount} && exec \"$@\"")).arg(folder.path());
        command.arg(env!("CARGO_BIN_EXE_hone"));
        let data_dir = folder.path().join("data");
        let mut server = Self::launch_by(command, &data_dir, &models, Vec::new(), Stdio::null());
        server._folder = Some(folder);
        Some(server)
    }

    /// Starts `binary`, which is the program or what becomes it.
    fn launch_by(
        mut binary: Command,
        data_dir: &Path,
        models_dir: &Path,
        settings: Vec<(String, String)>,
        stderr: Stdio,
    ) -> Self {
        let mut child = binary
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir)
            .arg("--models-dir")
            .arg(models_dir)
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("the server says where it listens");
        let base = line.trim().strip_prefix("hone listens on ").expect("the address").to_owned();
        Self {
            base,
            client: Client::new(),
            data_dir: data_dir.to_owned(),
            models_dir: models_dir.to_owned(),
            settings,
            child,
            _folder: None,
        }
    }

    /// Where it keeps things.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Changes a time in the server's database, since tests do not wait for hours. The statement's
    /// parameter is the row's id.
    pub async fn set_time(&self, statement: &'static str, id: &str) {
        let path = self.data_dir.join(hone::store::sqlite::DATABASE_FILE);
        // One test changes a model's id, which its files name.
        let options = SqliteConnectOptions::new().filename(path).foreign_keys(false);
        let mut outside = SqliteConnection::connect_with(&options).await.expect("connects");
        let changed = sqlx::query(statement).bind(id).execute(&mut outside).await.expect("sets");
        assert_eq!(changed.rows_affected(), 1);
        outside.close().await.expect("closes");
    }

    /// Sends this key with every request from now on.
    pub fn act_with(&mut self, key: &str) {
        self.client = Self::client_of(key);
    }

    /// A client that sends this key with every request.
    pub fn client_of(key: &str) -> Client {
        let value = format!("Bearer {key}").parse().expect("a header");
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
        Client::builder().default_headers(headers).build().expect("a client")
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the server at once, as a power cut would, and starts another one over its folders.
    pub fn kill_and_restart(mut self) -> Self {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
        self.start_again()
    }

    /// Ends the server as [`Server::kill_and_restart`] does, and starts another one with other settings.
    pub fn kill_and_restart_with(mut self, settings: &[(&str, &str)]) -> Self {
        self.settings = owned(settings);
        self.kill_and_restart()
    }

    /// Ends the server and every trainer of it at once, and starts another server.
    pub fn kill_all_and_restart(self) -> Self {
        // Stopped first, or the server would see its trainer die and start another.
        signal(self.pid(), "STOP");
        self.kill_trainer();
        self.kill_and_restart()
    }

    /// Ends the trainer at once; says whether there was one.
    pub fn kill_trainer(&self) -> bool {
        let ids = self.trainers();
        for id in &ids {
            // It may have ended by itself meanwhile.
            let _ = Command::new("kill").args(["-KILL", id]).stderr(Stdio::null()).status();
        }
        !ids.is_empty()
    }

    /// The ids of its trainers.
    pub fn trainers(&self) -> Vec<String> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        let mut children = std::fs::read_to_string(path).expect("the server runs");
        // Those that other threads have started.
        for entry in std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("threads") {
            let path = entry.expect("a thread").path().join("children");
            children.push(' ');
            children.push_str(&std::fs::read_to_string(path).unwrap_or_default());
        }
        let mut ids: Vec<String> = children.split_whitespace().map(str::to_owned).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Waits until the server dies by itself, and starts another one over its folders.
    #[cfg(feature = "fail-points")]
    pub fn dies_and_restarts(mut self) -> Self {
        assert!(!self.wait().success(), "it ends by a signal");
        self.start_again()
    }

    /// Asks the server to end, waits until it has, and starts another one over its folders.
    pub fn stop_and_restart(mut self) -> Self {
        assert!(self.stop().success());
        self.start_again()
    }

    fn start_again(mut self) -> Self {
        let settings = std::mem::take(&mut self.settings);
        let mut next = Self::launch(&self.data_dir, &self.models_dir, settings);
        next._folder = self._folder.take();
        next
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        signal(self.pid(), "TERM");
        self.wait()
    }

    fn wait(&mut self) -> std::process::ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("its state") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a request without a body.
    pub async fn send(&self, method: Method, path: &str) -> Reply {
        let request = self.client.request(method, format!("{}{path}", self.base));
        Reply::read(request.send().await.expect("a reply")).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        let request = self.client.post(format!("{}{path}", self.base)).json(&body);
        Reply::read(request.send().await.expect("a reply")).await
    }

    /// Uploads a form.
    pub async fn form(&self, form: Form) -> Reply {
        let request = self.client.post(format!("{}/v1/files", self.base)).multipart(form);
        Reply::read(request.send().await.expect("a reply")).await
    }

    /// Uploads training data and returns the file's id.
    pub async fn upload(&self, content: &str) -> String {
        let part = Part::text(content.to_owned()).file_name("train.jsonl");
        let reply = self.form(Form::new().text("purpose", "fine-tune").part("file", part)).await;
        reply.ok()["id"].as_str().expect("an id").to_owned()
    }

    /// Creates a job of the tiny model over a fresh upload of `lines` and returns its id.
    pub async fn create_job(&self, content: &str, hyperparameters: Value) -> String {
        let file = self.upload(content).await;
        let body = json!({"model": TINY, "training_file": file, "seed": 1,
            "method": {"type": "supervised",
                "supervised": {"hyperparameters": hyperparameters}}});
        let job = self.post("/v1/fine_tuning/jobs", body).await.ok();
        job["id"].as_str().expect("an id").to_owned()
    }

    pub async fn job(&self, id: &str) -> Value {
        self.get(&format!("/v1/fine_tuning/jobs/{id}")).await.ok()
    }

    /// Waits until the job is as wanted.
    pub async fn until(&self, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let job = self.job(id).await;
            if wanted(&job) {
                return job;
            }
            assert!(start.elapsed() < PATIENCE, "still waiting: {job:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the job has ended, which must be in this state.
    pub async fn ended(&self, id: &str, status: &str) -> Value {
        let job = self.until(id, |job| !job["finished_at"].is_null()).await;
        assert_eq!(job["status"], status, "{job:#}");
        job
    }

    /// The bytes of a job's result file.
    pub async fn result_file(&self, job: &Value, filename: &str) -> Vec<u8> {
        for id in job["result_files"].as_array().expect("a list") {
            let id = id.as_str().expect("an id");
            if self.get(&format!("/v1/files/{id}")).await.ok()["filename"] == filename {
                let url = format!("{}/v1/files/{id}/content", self.base);
                let reply = self.client.get(url).send().await.expect("a reply");
                return reply.bytes().await.expect("bytes").to_vec();
            }
        }
        panic!("{filename} is not there: {job:#}");
    }

    /// Waits until the job has done some steps.
    pub async fn under_way(&self, id: &str) {
        self.until(id, |job| job["trained_steps"].as_u64().is_some_and(|steps| steps >= 2)).await;
    }

    /// All events, newest first.
    pub async fn events(&self, id: &str) -> Vec<Value> {
        let mut events: Vec<Value> = Vec::new();
        loop {
            let after = events.last().and_then(|last| last["id"].as_str()).unwrap_or_default();
            let path = format!("/v1/fine_tuning/jobs/{id}/events?limit=100&after={after}");
            let page = self.get(&path).await.ok();
            events.extend(page["data"].as_array().expect("a list").clone());
            if page["has_more"] == false {
                return events;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn owned(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    settings.iter().map(own).collect()
}

/// What `hone keys` comes to.
pub fn keys(data_dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hone"));
    command.arg("keys").args(arguments).arg("--data-dir").arg(data_dir);
    command.output().expect("it runs")
}

/// Makes a key of this project.
pub fn make_key(data_dir: &Path, project: &str) -> String {
    let output = keys(data_dir, &["create", "--project", project]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// Waits until there is no such file or folder.
pub async fn gone(path: &Path) {
    let start = Instant::now();
    while path.exists() {
        assert!(start.elapsed() < PATIENCE, "{} is still there", path.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Highest resident memory of a process so far, in MiB.
pub fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    let kibibytes: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("kB");
    kibibytes / 1024
}

/// Sends a signal to a process.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.expect("kill").success());
}

/// `count` chat examples.
pub fn chat_lines(count: usize) -> String {
    let mut lines = String::new();
    for number in 0..count {
        let line = json!({"messages": [
            {"role": "user", "content": format!("What comes after {number}?")},
            {"role": "assistant", "content": format!("{}, of course.", number + 1)},
        ]});
        lines.push_str(&format!("{line}\n"));
    }
    lines
}
