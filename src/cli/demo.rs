//! `hone demo`: the whole product on a real model, through the API: uploads data, creates a job, waits for its
//! LoRA training, chats with the fine-tuned model and downloads the adapter.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::models::pull_and_print;
use super::serve::{RunningServer, ServeArgs, start};
use crate::config::{Cors, Folders, Limits, Listen, Serving, TrainingDevice, Webhooks};

/// The base model.
const BASE_MODEL: &str = "smollm2-135m-instruct";

/// 64 examples, in which every answer greets and takes leave as a lighthouse keeper would.
const EXAMPLES: &str = include_str!("../../examples/lighthouse.jsonl");

/// A question that is not among the examples.
const QUESTION: &str = "What is the capital of Portugal?";

/// How a tuned answer begins and ends.
const GREETING: &str = "Ahoy!";
const FAREWELL: &str = "Fair winds!";

/// How often the demo polls the job.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Settings of the demo.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    #[command(flatten)]
    folders: Folders,
    #[command(flatten)]
    training: TrainingDevice,

    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long, env = "HONE_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDR")]
    listen: std::net::SocketAddr,

    /// Go on serving after the demo, until Ctrl-C.
    #[arg(long)]
    keep_serving: bool,
}

/// Runs the demo. Fails when the fine-tuned model does not answer in the style of the examples.
pub fn demo(args: &DemoArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("starting the async runtime")?;
    runtime.block_on(async {
        tokio::select! {
            ended = run(args) => ended,
            _ = tokio::signal::ctrl_c() => {
                bail!("ended by Ctrl-C; the next `hone serve` on the same data folder resumes the job")
            }
        }
    })
}

#[expect(clippy::print_stdout, reason = "the command's product")]
fn say(line: impl AsRef<str>) {
    println!("{}", line.as_ref());
}

async fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let began = Instant::now();
    say("1. The base model");
    pull_and_print(&args.folders.models.models_dir, BASE_MODEL).await?;

    say("\n2. The server");
    let serve = ServeArgs {
        listen: Listen { listen: args.listen },
        folders: args.folders.clone(),
        training: args.training.clone(),
        serving: Serving::default(),
        webhooks: Webhooks::default(),
        limits: Limits::default(),
        cors: Cors::default(),
    };
    let server = start(&serve).await?;
    let data_dir = args.folders.data_dir.display();
    ensure!(
        !server.requires_keys().await?,
        "{data_dir} belongs to a server whose clients need API keys, and the demo has none: give it \
         another folder with --data-dir"
    );
    let client = DemoClient::new(&server);
    say(format!("hone listens on {}, its data lies in {data_dir}", client.base));

    say("\n3. The data and the job");
    let file = client.upload("lighthouse.jsonl", EXAMPLES).await?;
    say(format!("uploaded examples/lighthouse.jsonl: {file}"));
    let before = client.ask(BASE_MODEL).await?;
    let job = client
        .post(
            "/fine_tuning/jobs",
            json!({"model": BASE_MODEL, "training_file": file, "suffix": "lighthouse", "seed": 7,
                "method": {"type": "supervised", "supervised": {"hyperparameters": {
                    "n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 5}}}}),
        )
        .await?;
    let job_id = text(&job, "id")?;
    say(format!("created {job_id}"));

    say("\n4. Training");
    let job = client.watch(&job_id).await?;
    let model = text(&job, "fine_tuned_model")?;
    say(format!("trained {model}: {} tokens", job["trained_tokens"]));

    say("\n5. The same question before and after");
    let after = client.ask(&model).await?;
    say(format!("   asked:  {QUESTION}\n   before: {before}\n   after:  {after}"));

    let folder = args.folders.data_dir.join("demo-adapter");
    client.download(&job, &folder).await?;
    say(format!("\n6. The adapter, in PEFT layout: {}", folder.display()));
    say(next_steps(&client.base, &model, args));
    say(format!("The whole demo took {:.0} seconds.", began.elapsed().as_secs_f64()));

    let has_effect = |answer: &str| answer.starts_with(GREETING) && answer.contains(FAREWELL);
    ensure!(
        has_effect(&after) && !has_effect(&before),
        "the tuned model should answer with {GREETING:?} and {FAREWELL:?}, and the base model not"
    );
    if args.keep_serving {
        say(format!("Serving on {} until Ctrl-C.", client.base));
        // Ctrl-C ends this from outside.
        std::future::pending::<()>().await;
    }
    server.shutdown().await
}

/// How to use the model afterwards.
fn next_steps(base: &str, model: &str, args: &DemoArgs) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "hone".to_owned());
    let serve = format!(
        "{program} serve --data-dir {} --models-dir {}",
        args.folders.data_dir.display(),
        args.folders.models.models_dir.display()
    );
    let url = if args.keep_serving { base } else { "http://127.0.0.1:8080" };
    let body = json!({"model": model, "messages": [{"role": "user", "content": QUESTION}]});
    format!(
        "\nTo go on: {serve}\n\n\
         curl {url}/v1/chat/completions -d '{body}'\n\n\
         from openai import OpenAI\n\
         client = OpenAI(base_url=\"{url}/v1\", api_key=\"none\")\n\
         answer = client.chat.completions.create(model=\"{model}\",\n    \
         messages=[{{\"role\": \"user\", \"content\": \"{QUESTION}\"}}])\n\
         print(answer.choices[0].message.content)\n"
    )
}

fn text(value: &Value, key: &str) -> anyhow::Result<String> {
    let text = value[key].as_str();
    text.map(str::to_owned).with_context(|| format!("the reply has no {key:?}: {value}"))
}

/// A client of the API.
struct DemoClient {
    http: reqwest::Client,
    base: String,
}

impl DemoClient {
    fn new(server: &RunningServer) -> Self {
        Self { http: reqwest::Client::new(), base: format!("http://{}", server.address) }
    }

    async fn read(response: reqwest::Response) -> anyhow::Result<Value> {
        let status = response.status();
        let body: Value = response.json().await.context("reading a reply")?;
        if !status.is_success() {
            bail!("the server answered {status}: {}", body["error"]["message"]);
        }
        Ok(body)
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Self::read(self.http.get(format!("{}/v1{path}", self.base)).send().await?).await
    }

    async fn post(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        let request = self.http.post(format!("{}/v1{path}", self.base)).json(&body);
        Self::read(request.send().await?).await
    }

    async fn upload(&self, name: &'static str, content: &'static str) -> anyhow::Result<String> {
        let part = reqwest::multipart::Part::text(content).file_name(name);
        let form = reqwest::multipart::Form::new().text("purpose", "fine-tune").part("file", part);
        let request = self.http.post(format!("{}/v1/files", self.base)).multipart(form);
        text(&Self::read(request.send().await?).await?, "id")
    }

    async fn ask(&self, model: &str) -> anyhow::Result<String> {
        let reply = self
            .post(
                "/chat/completions",
                json!({"model": model, "temperature": 0, "max_tokens": 60,
                    "messages": [{"role": "user", "content": QUESTION}]}),
            )
            .await?;
        text(&reply["choices"][0]["message"], "content")
    }

    /// Shows a job's progress until it has ended. Fails unless the job succeeds.
    async fn watch(&self, job_id: &str) -> anyhow::Result<Value> {
        let bar = std::io::stderr().is_terminal().then(new_bar);
        let mut last_step = 0;
        loop {
            let job = self.get(&format!("/fine_tuning/jobs/{job_id}")).await?;
            let total = job["total_steps"].as_u64().unwrap_or(0);
            if let Some(metrics) = self.newest_metrics(job_id).await? {
                let step = metrics["step"].as_u64().unwrap_or(0);
                if step > last_step {
                    last_step = step;
                    show(bar.as_ref(), &metrics, step, total, &job);
                }
            }
            match job["status"].as_str() {
                Some("succeeded") => {
                    if let Some(bar) = bar {
                        bar.finish();
                    }
                    return Ok(job);
                }
                Some("failed" | "cancelled") => {
                    bail!("the job {}: {}", job["status"], job["error"]["message"])
                }
                _ => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// Numbers of the newest step that has an event.
    async fn newest_metrics(&self, job_id: &str) -> anyhow::Result<Option<Value>> {
        let events = self.get(&format!("/fine_tuning/jobs/{job_id}/events?limit=20")).await?;
        let events = events["data"].as_array().context("the reply has no events")?;
        let metrics = events.iter().find(|event| event["type"] == "metrics");
        Ok(metrics.map(|event| event["data"].clone()))
    }

    /// Downloads the adapter among a job's result files.
    async fn download(&self, job: &Value, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("making the folder {}", folder.display()))?;
        for id in job["result_files"].as_array().context("the job has no result files")? {
            let id = id.as_str().context("a file id is a text")?;
            let name = text(&self.get(&format!("/files/{id}")).await?, "filename")?;
            let url = format!("{}/v1/files/{id}/content", self.base);
            let bytes = self.http.get(url).send().await?.error_for_status()?.bytes().await?;
            let name = Path::new(&name).file_name().map(PathBuf::from).context("a file's name")?;
            std::fs::write(folder.join(name), &bytes)?;
        }
        Ok(())
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("   step {pos}/{len} {bar:30} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Shows a step: on the progress bar of a terminal, or as a line.
fn show(bar: Option<&ProgressBar>, metrics: &Value, step: u64, total: u64, job: &Value) {
    let loss = metrics["train_loss"].as_f64().unwrap_or(f64::NAN);
    let speed = metrics["tokens_per_second"].as_f64().unwrap_or(0.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs() as i64);
    let left = job["estimated_finish"].as_i64().map_or(0, |finish| (finish - now).max(0));
    let message = format!("loss {loss:.3}, {speed:.0} tokens/s, {left} s left");
    match bar {
        Some(bar) => {
            bar.set_length(total);
            bar.set_position(step);
            bar.set_message(message);
        }
        None => say(format!("   step {step}/{total}: {message}")),
    }
}
