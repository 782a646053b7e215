//! A job's model handed out: by the route, by the command, with the certificate that says what it
//! computes; and what vLLM asks of an adapter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hone::artifacts::certificate::Certificate;
use hone::artifacts::peft;
use hone::train::model::base_model::BaseModel;
use hone::train::protocol::Progress;
use serde_json::{Value, json};

use crate::formats::export::FAMILIES;
use crate::http::extensions::unpacked;
use crate::support::server::{Server, TINY, chat_lines};
use crate::train::golden::read_json;
use crate::train::training::Trainer;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn short() -> Value {
    json!({"n_epochs": 2, "batch_size": 2, "learning_rate": 1e-2})
}

/// The files of an archive from the route.
async fn downloaded(server: &Server, id: &str, query: &str) -> BTreeMap<String, Vec<u8>> {
    let url = format!("{}/v1/fine_tuning/jobs/{id}/adapter?{query}", server.base);
    let reply = server.client.get(url).send().await.expect("a reply");
    assert_eq!(reply.status(), 200, "{query}");
    let length = reply.headers()["content-length"].to_str().expect("a text").to_owned();
    let bytes = reply.bytes().await.expect("bytes");
    assert_eq!(length, bytes.len().to_string());
    unpacked(&bytes)
}

fn hone(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hone")).args(arguments).output().expect("it runs")
}

/// Standard output of a command that must succeed.
fn succeed(arguments: &[&str]) -> String {
    let output = hone(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command that must fail says.
fn fail(arguments: &[&str]) -> String {
    let output = hone(arguments);
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn files_in(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        files.insert(name, std::fs::read(path).expect("reads"));
    }
    files
}

/// What each format holds of an adapter.
const FORMATS: &[(&str, &[&str])] = &[
    (
        "format=peft",
        &[
            "adapter_config.json",
            "adapter_model.safetensors",
            "certificate.json",
            "chat_template.jinja",
        ],
    ),
    (
        "format=merged",
        &[
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ],
    ),
    (
        "format=merged&dtype=bfloat16",
        &[
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ],
    ),
    (
        "format=peft&base_model_name=Someone/Tiny",
        &[
            "adapter_config.json",
            "adapter_model.safetensors",
            "certificate.json",
            "chat_template.jinja",
        ],
    ),
    ("format=gguf-lora", &["Modelfile", "adapter.gguf"]),
    ("format=gguf", &["Modelfile", "model.gguf"]),
    ("format=gguf&quantization=q8_0", &["Modelfile", "model.gguf"]),
];

#[tokio::test]
async fn a_job_is_exported_by_the_route_and_by_the_command_in_the_same_bytes() {
    let server = Server::start();
    let id = server.create_job(&chat_lines(12), short()).await;
    let job = server.ended(&id, "succeeded").await;
    let name = job["fine_tuned_model"].as_str().expect("a name");
    let out = tempfile::tempdir().expect("a folder");
    for (number, (query, wanted)) in FORMATS.iter().enumerate() {
        let files = downloaded(&server, &id, query).await;
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        // Others where the base has them.
        assert_eq!(names, *wanted, "{query}");

        // While the server runs, by the job's id and by the model's name.
        let folder = out.path().join(number.to_string());
        let (format, option) = query.split_once('&').unwrap_or((query, ""));
        let mut arguments = vec!["export", if number == 0 { &id } else { name }];
        arguments.extend(["--format", &format["format=".len()..]]);
        let flag = option.split_once('=');
        let flag = flag.map(|(key, value)| (format!("--{}", key.replace('_', "-")), value));
        if let Some((flag, value)) = &flag {
            arguments.extend([flag.as_str(), value]);
        }
        arguments.extend(["--out", text(&folder), "--data-dir", text(server.data_dir())]);
        let models = data("");
        arguments.extend(["--models-dir", text(&models)]);
        let said = succeed(&arguments);
        assert!(said.starts_with(&format!("{name}: exported as ")), "{said}");
        assert!(files_in(&folder) == files, "{query}: other bytes");

        // Nothing is written over.
        let message = fail(&arguments);
        assert!(message.contains("is not empty"), "{message}");
    }
    assert_eq!(std::fs::read_dir(out.path()).expect("lists").count(), FORMATS.len(), "left over");

    // A checkpoint as well, which no certificate is of.
    let files = downloaded(&server, &id, "step=6").await;
    assert_eq!(
        files.keys().collect::<Vec<_>>(),
        ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"]
    );
    assert_eq!(downloaded(&server, &id, "step=6&format=gguf-lora").await.len(), 2);
    // The spool is empty again.
    let spool = server.data_dir().join("blobs/spool");
    assert_eq!(std::fs::read_dir(spool).expect("lists").count(), 0);

    let models = data("");
    let nowhere = out.path().join("none");
    let ask = |job: &str, models: &str| {
        fail(&[
            "export",
            job,
            "--format",
            "gguf",
            "--out",
            text(&nowhere),
            "--data-dir",
            text(server.data_dir()),
            "--models-dir",
            models,
        ])
    };
    assert!(ask("ftjob-none", text(&models)).contains("no job and no fine-tuned model"));
    assert!(ask(&id, text(out.path())).contains("not in the models folder"));
    let data_dir = text(server.data_dir());
    for (option, value, format) in [
        ("--quantization", "f16", "gguf"),
        ("--dtype", "float16", "merged"),
        ("--base-model-name", "a/b", "peft"),
    ] {
        let other = if format == "peft" { "gguf" } else { "peft" };
        let out = text(&nowhere);
        let message = fail(&[
            "export",
            &id,
            "--format",
            other,
            option,
            value,
            "--out",
            out,
            "--data-dir",
            data_dir,
        ]);
        assert!(message.contains(&format!("of the format {format:?} alone")), "{message}");
    }
    assert!(!nowhere.exists(), "an export that failed leaves nothing");
}

#[tokio::test]
async fn a_whole_model_is_exported_as_one_and_never_as_an_adapter() {
    let server = Server::start();
    let values = json!({"n_epochs": 2, "batch_size": 2, "tuning": "full"});
    let id = server.create_job(&chat_lines(12), values).await;
    let job = server.ended(&id, "succeeded").await;
    let merged = downloaded(&server, &id, "format=merged").await;
    assert!(merged["model.safetensors"] == server.result_file(&job, "model.safetensors").await);
    assert_eq!(downloaded(&server, &id, "format=merged&dtype=float32").await, merged);
    // In another type it is not what the certificate is of.
    let rounded = downloaded(&server, &id, "format=merged&dtype=bfloat16").await;
    assert!(!rounded.contains_key("certificate.json"));
    let config: Value = serde_json::from_slice(&rounded["config.json"]).expect("JSON");
    assert_eq!(config["dtype"], "bfloat16");
    assert!(rounded["model.safetensors"].len() < merged["model.safetensors"].len() * 3 / 5);
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in &merged {
        std::fs::write(folder.path().join(name), bytes).expect("writes");
    }
    let said = succeed(&["verify", text(folder.path())]);
    assert!(said.contains("the certificate holds"), "{said}");
    assert_eq!(downloaded(&server, &id, "format=gguf").await.len(), 2);
    for format in ["peft", "gguf-lora"] {
        let path = format!("/v1/fine_tuning/jobs/{id}/adapter?format={format}");
        let error = server.get(&path).await.error(400);
        assert_eq!((&error["code"], &error["param"]), (&json!("unsupported"), &json!("format")));
        assert!(
            error["message"].as_str().is_some_and(|text| text.contains("\"merged\"")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn an_adapter_names_its_base_as_the_hub_does_and_its_certificate_holds() {
    let models = tempfile::tempdir().expect("a folder");
    let base = models.path().join("mine");
    std::fs::create_dir(&base).expect("makes");
    for (name, bytes) in files_in(&data(TINY)) {
        std::fs::write(base.join(name), bytes).expect("writes");
    }
    let data_dir = tempfile::tempdir().expect("a folder");
    let server = Server::start_over(data_dir.path(), models.path());
    let train = async |model: &str| {
        let training = server.upload(&chat_lines(12)).await;
        let body = json!({"model": model, "training_file": training, "hyperparameters": short()});
        let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
        assert_eq!(job["model"], "mine", "the model's own id");
        let id = job["id"].as_str().expect("an id").to_owned();
        server.ended(&id, "succeeded").await;
        id
    };
    let out = tempfile::tempdir().expect("a folder");
    let export = |id: &str, name: &str, more: &[&str]| {
        let folder = out.path().join(name);
        let mut arguments = vec!["export", id, "--format", "peft", "--out", text(&folder)];
        arguments.extend([
            "--data-dir",
            text(server.data_dir()),
            "--models-dir",
            text(models.path()),
        ]);
        arguments.extend(more);
        let said = succeed(&arguments);
        succeed(&["verify", text(&folder), "--base", text(&base)]);
        let config = read_json(&folder.join(peft::CONFIG_FILE));
        (config["base_model_name_or_path"].as_str().expect("a text").to_owned(), said)
    };
    // Nobody knows where the base comes from: it is called as its folder is, and that is said.
    let first = train("mine").await;
    let (name, said) = export(&first, "unknown", &[]);
    assert_eq!(name, "mine");
    assert!(
        said.contains("note: adapter_config.json") && said.contains("--base-model-name"),
        "{said}"
    );
    let (name, said) = export(&first, "named", &["--base-model-name", "Someone/Tiny"]);
    assert_eq!(name, "Someone/Tiny");
    assert!(!said.contains("note:"), "{said}");
    // A record in the base's folder counts for new adapters and for those that are there, and the base is found
    // by that name as well.
    std::fs::write(base.join("hub.json"), r#"{"repository": "Other/Tiny"}"#).expect("writes");
    assert_eq!(export(&first, "recorded", &[]).0, "Other/Tiny");
    let second = train("other/tiny").await;
    assert_eq!(export(&second, "second", &[]).0, "Other/Tiny");
    let published = downloaded(&server, &second, "format=peft").await;
    let certificate: Value =
        serde_json::from_slice(&published["certificate.json"]).expect("a certificate");
    let job = server.get(&format!("/v1/fine_tuning/jobs/{second}")).await.ok();
    let bytes = server.result_file(&job, "certificate.json").await;
    assert!(bytes == published["certificate.json"], "nothing had to be changed: {certificate}");
}

#[tokio::test]
async fn a_certificate_joins_the_results_and_holds_elsewhere_until_a_byte_changes() {
    let server = Server::start();
    let training = server.upload(&chat_lines(12)).await;
    let validation = server.upload(&chat_lines(3)).await;
    let body = json!({
        "model": TINY, "training_file": training, "validation_file": validation, "seed": 7,
        "method": {"type": "supervised", "supervised": {"hyperparameters": short()}},
    });
    let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
    let id = job["id"].as_str().expect("an id").to_owned();
    let job = server.ended(&id, "succeeded").await;
    let bytes = server.result_file(&job, "certificate.json").await;
    let certificate: Certificate = serde_json::from_slice(&bytes).expect("a certificate");
    let base = data(TINY);
    assert_eq!(certificate.base_model.sha256, BaseModel::open(&base).expect("opens").digest);
    assert_eq!((certificate.seed, certificate.base_model.id.as_str()), (7, TINY));
    assert!(certificate.template_sha256.is_some() && certificate.data.validation_sha256.is_some());
    let compared = &certificate.compared;
    assert_eq!((compared.rows_of.as_str(), certificate.rows.len()), ("validation", 3));
    assert!(compared.tokens > 30, "{compared:?}");
    assert_eq!(compared.largest_difference, 0.0, "what answers is what was trained: {compared:?}");
    let last = job["result_files"].as_array().and_then(|files| files.last()).expect("a file");
    let last = server.get(&format!("/v1/files/{}", last.as_str().expect("an id"))).await.ok();
    assert_eq!(last["filename"], "certificate.json", "after the report");

    let folder = tempfile::tempdir().expect("a folder");
    let dir = text(folder.path());
    for (name, bytes) in downloaded(&server, &id, "format=peft").await {
        std::fs::write(folder.path().join(name), bytes).expect("writes");
    }
    let models = data("");
    let said = succeed(&["verify", dir, "--models-dir", text(&models)]);
    assert!(said.contains("tokens computed again"), "{said}");
    succeed(&["verify", dir, "--base", text(&base)]);
    // The same on the lowest level of instructions, whose products round otherwise.
    let mut portable = Command::new(env!("CARGO_BIN_EXE_hone"));
    portable.args(["verify", dir, "--base", text(&base)]).env("HONE_CPU", "portable");
    let output = portable.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let message = fail(&["verify", dir, "--models-dir", dir]);
    assert!(message.contains("no base model") && message.contains("--base"), "{message}");
    let message = fail(&["verify", dir, "--base", text(&other_base(folder.path()))]);
    assert!(message.contains("the base model") && message.contains("another one"), "{message}");

    // One bit of the weights; then numbers in the certificate that the files do not come to.
    let path = folder.path().join("adapter_model.safetensors");
    let mut weights = std::fs::read(&path).expect("reads");
    let place = weights.len() - 1;
    weights[place] ^= 1;
    std::fs::write(&path, &weights).expect("writes");
    let message = fail(&["verify", dir, "--base", text(&base)]);
    assert!(
        message.contains("adapter_model.safetensors") && message.contains("another"),
        "{message}"
    );
    weights[place] ^= 1;
    std::fs::write(&path, &weights).expect("writes");
    let mut other = certificate.clone();
    other.rows[0].logits[3] += 1.0;
    let bytes = serde_json::to_vec(&other).expect("JSON");
    std::fs::write(folder.path().join("certificate.json"), bytes).expect("writes");
    let message = fail(&["verify", dir, "--base", text(&base)]);
    assert!(message.contains("other numbers"), "{message}");
}

/// The tiny model with one other byte in a file beside the weights.
fn other_base(folder: &Path) -> PathBuf {
    let base = folder.join("other");
    std::fs::create_dir(&base).expect("makes");
    for (name, bytes) in files_in(&data(TINY)) {
        std::fs::write(base.join(name), bytes).expect("writes");
    }
    std::fs::write(base.join("README.md"), "another").expect("writes");
    base
}

#[test]
fn the_same_run_has_the_same_certificate() {
    let certificate = |threads| {
        let trainer = Trainer::new();
        let said = trainer.run_on(threads, None);
        let Some(Progress::Finished { certificate, .. }) = said.last() else {
            panic!("{:?}", said.last())
        };
        std::fs::read(certificate).expect("reads")
    };
    assert!(certificate(1) == certificate(2));
}

/// The rules by which vLLM takes an adapter (`vllm/lora/peft_helper.py`, `vllm/lora/utils.py` and
/// `vllm/lora/lora_model.py`, read in November 2026), for a server started with `--max-lora-rank` of
/// `most_rank`.
fn check_as_vllm_does(config: &Value, tensors: &peft::AdapterTensors, most_rank: u64, what: &str) {
    // Keys without a default.
    let rank = config["r"].as_u64().unwrap_or_else(|| panic!("{what}: r"));
    let alpha = config["lora_alpha"].as_f64().unwrap_or_else(|| panic!("{what}: lora_alpha"));
    let targets = config["target_modules"].as_array();
    let targets = targets.unwrap_or_else(|| panic!("{what}: target_modules"));
    // What it declines.
    assert!(rank >= 1 && rank <= most_rank && alpha > 0.0, "{what}: r {rank}, alpha {alpha}");
    assert_eq!(config["bias"], "none", "{what}");
    assert_ne!(config["use_dora"], true, "{what}");
    assert!(config["modules_to_save"].is_null(), "{what}: it takes none, export a merged model");
    // Names: base_model.model.<module>.lora_A.weight or .lora_B.weight, nothing else.
    let mut halves: BTreeMap<String, Vec<(&str, Vec<usize>)>> = BTreeMap::new();
    for (key, (shape, _)) in tensors {
        let parts: Vec<&str> = key.split('.').collect();
        let [start @ .., matrix, "weight"] = &parts[..] else { panic!("{what}: {key}") };
        let ["base_model", "model", module @ ..] = start else { panic!("{what}: {key}") };
        assert!(["lora_A", "lora_B"].contains(matrix), "{what}: {key}");
        // PEFT's rule: the whole path, or its last part.
        let path = module.join(".");
        let is_target = targets
            .iter()
            .filter_map(Value::as_str)
            .any(|target| path == target || path.ends_with(&format!(".{target}")));
        assert!(is_target, "{what}: {path} is no target");
        halves.entry(path).or_default().push((matrix, shape.clone()));
    }
    assert!(!halves.is_empty(), "{what}: it holds no tensors");
    for (module, halves) in halves {
        let [("lora_A", a), ("lora_B", b)] = &halves[..] else { panic!("{what}: {module}") };
        assert_eq!(
            (a.len(), b.len(), a[0], b[1]),
            (2, 2, rank as usize, rank as usize),
            "{module}"
        );
    }
}

#[tokio::test]
async fn adapters_keep_the_rules_of_vllms_loader() {
    for family in FAMILIES {
        let folder = data("golden").join(family).join("adapter");
        let weights = std::fs::read(folder.join(peft::WEIGHTS_FILE)).expect("reads");
        let tensors = peft::deserialise(&weights).expect("floats");
        check_as_vllm_does(&read_json(&folder.join(peft::CONFIG_FILE)), &tensors, 16, family);
    }
    // Those that hone writes itself, in every shape that a job can ask for.
    let server = Server::start();
    for more in [
        json!({}),
        json!({"lora_target_modules": ["q_proj", "down_proj"], "use_rslora": true, "lora_r": 16}),
        json!({"lora_layers": 1, "lora_dropout": 0.1}),
    ] {
        let mut values = short();
        values.as_object_mut().expect("an object").extend(more.as_object().expect("one").clone());
        let id = server.create_job(&chat_lines(12), values).await;
        server.ended(&id, "succeeded").await;
        let files = downloaded(&server, &id, "format=peft").await;
        let config = serde_json::from_slice(&files[peft::CONFIG_FILE]).expect("JSON");
        let tensors = peft::deserialise(&files[peft::WEIGHTS_FILE]).expect("floats");
        check_as_vllm_does(&config, &tensors, 16, &more.to_string());
    }
}
