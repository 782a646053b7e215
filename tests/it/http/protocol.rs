//! What holds for every route: the error envelope, tolerance for what real clients send, the
//! OpenAPI document, and connections that misbehave.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::server::{Reply, Server, TINY, chat_lines, signal};

#[tokio::test]
async fn every_fallback_has_openais_error_shape_and_a_request_id() {
    let server = Server::start();
    assert_eq!(server.get("/v1/nothing").await.error(404)["code"], "route_not_found");
    for (route, hint) in [
        ("/v1/responses", "/v1/chat/completions"),
        ("/v1/responses/resp_1", "/v1/chat/completions"),
        ("/v1/images/generations", "text models only"),
    ] {
        let error = server.post(route, json!({})).await.error(404);
        assert!(error["message"].as_str().is_some_and(|text| text.contains(hint)), "{error}");
    }
    let reply = server.send(Method::PATCH, "/v1/fine_tuning/jobs").await;
    reply.error(405);
    let allow = reply.headers["allow"].to_str().expect("a text").to_owned();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    for body in ["{\"model\": ", "[]", "[{\"a\": 1, \"a\": 2}]", "", "\"text\""] {
        let request = server.client.post(format!("{}/v1/fine_tuning/jobs", server.base)).body(body);
        let error = Reply::read(request.send().await.expect("a reply")).await.error(400);
        assert_eq!(error["code"], "invalid_json", "{body}");
    }
    let twice = "{\"model\": \"m\", \"hyperparameters\": {\"n_epochs\": 999, \"n_epochs\": 2}}";
    let request = server.client.post(format!("{}/v1/fine_tuning/jobs", server.base)).body(twice);
    let error = Reply::read(request.send().await.expect("a reply")).await.error(400);
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("invalid_json"), &json!("hyperparameters.n_epochs"))
    );
    let huge = server
        .client
        .post(format!("{}/v1/fine_tuning/jobs", server.base))
        .body(format!("{{\"model\": \"{}\"}}", "x".repeat(2 << 20)));
    Reply::read(huge.send().await.expect("a reply")).await.error(413);
    server.get("/v1/files/%ff").await.error(400);
}

#[tokio::test]
async fn everything_in_a_list_can_be_deleted_page_by_page() {
    let server = Server::start();
    let job = server.create_job(&chat_lines(12), json!({"n_epochs": 1})).await;
    let model = server.ended(&job, "succeeded").await["fine_tuned_model"].clone();
    let model = model.as_str().expect("a model");
    for _ in 0..5 {
        server.upload(&chat_lines(12)).await;
        let body = json!({"name": "mine", "url": "https://example.com/hook",
            "event_types": ["fine_tuning.job.succeeded"]});
        server.post("/v1/webhook_endpoints", body).await.ok();
    }
    let permissions = format!("/v1/fine_tuning/checkpoints/{model}/permissions");
    let body = json!({"project_ids": ["a", "b", "c", "d", "e"]});
    server.post(&permissions, body).await.ok();

    // As the pages of the SDKs do it: the item after which they go on is gone by then.
    let mut cursors = Vec::new();
    for (list, query) in [
        ("/v1/files", "purpose=fine-tune&order=asc"),
        ("/v1/webhook_endpoints", ""),
        (&permissions, "order=descending"),
        (&permissions, "order=ascending"),
    ] {
        let whole = server.get(&format!("{list}?{query}")).await.ok();
        let mut after = String::new();
        let mut deleted = 0;
        loop {
            let page = server.get(&format!("{list}?{query}&limit=2&after={after}")).await.ok();
            for item in page["data"].as_array().expect("a list") {
                let id = item["id"].as_str().expect("an id");
                assert_eq!(server.delete(&format!("{list}/{id}")).await.ok()["deleted"], true);
                deleted += 1;
            }
            if page["has_more"] == false {
                break;
            }
            after = page["last_id"].as_str().expect("an id").to_owned();
        }
        assert!(deleted > 2);
        assert_eq!(deleted, whole["data"].as_array().expect("a list").len(), "{list}");
        if list == permissions {
            server.post(&permissions, json!({"project_ids": ["f", "g", "h"]})).await.ok();
        }
        cursors.push(after);
    }
    let elsewhere = format!("/v1/webhook_endpoints?after={}", cursors[0]);
    assert_eq!(server.get(&elsewhere).await.error(400)["code"], "invalid_cursor", "a file's");

    // After a day it is forgotten where something stood.
    let of_yesterday = "UPDATE deleted_items SET deleted_at = deleted_at - 86401 WHERE id = $1";
    let page = server.get(&permissions).await.ok();
    let ids: Vec<&str> = page["data"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["id"].as_str())
        .collect();
    server.delete(&format!("{permissions}/{}", ids[0])).await.ok();
    server.get(&format!("{permissions}?after={}", ids[0])).await.ok();
    server.set_time(of_yesterday, ids[0]).await;
    server.delete(&format!("{permissions}/{}", ids[1])).await.ok();
    let error = server.get(&format!("{permissions}?after={}", ids[0])).await.error(400);
    assert_eq!(error["code"], "invalid_cursor");
}

#[tokio::test]
async fn a_request_id_is_echoed_only_when_it_has_the_shape_of_one() {
    let server = Server::start();
    let get = async |id: &str| {
        let request = server.client.get(format!("{}/healthz", server.base));
        let reply = request.header("x-request-id", id).send().await.expect("a reply");
        reply.headers()["x-request-id"].to_str().expect("a text").to_owned()
    };
    assert_eq!(get("mine-1").await, "mine-1");
    for bad in ["a b", "<script>", &"x".repeat(65)] {
        assert_ne!(get(bad).await, bad);
    }
}

#[tokio::test]
async fn any_token_and_any_content_type_are_taken_with_and_without_v1() {
    let server = Server::start();
    let file = server.upload(&chat_lines(9)).await;
    let body = json!({"model": TINY, "training_file": file}).to_string();
    for (path, content_type) in [
        ("/v1/fine_tuning/jobs", "application/x-www-form-urlencoded"),
        ("/fine_tuning/jobs", "application/json; charset=utf-8"),
    ] {
        let request = server
            .client
            .post(format!("{}{path}", server.base))
            .header("content-type", content_type)
            .header("authorization", "Bearer anything")
            .header("openai-organization", "o")
            .header("x-stainless-retry-count", "1")
            .body(body.clone());
        Reply::read(request.send().await.expect("a reply")).await.ok();
    }
    for path in ["/files", "/models", "/v1/models", "/fine_tuning/jobs"] {
        server.get(path).await.ok();
    }
    assert_eq!(server.get("/healthz").await.ok(), json!({"status": "ok"}));
    assert_eq!(server.get("/readyz").await.ok(), json!({"status": "ready"}));
}

#[tokio::test]
async fn the_committed_openapi_document_is_what_the_server_serves() {
    let server = Server::start();
    let served = server.get("/openapi.json").await.ok();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/openapi.json");
    let text = serde_json::to_string_pretty(&served).expect("serialises") + "\n";
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &text).expect("written");
    }
    let committed = std::fs::read_to_string(&path).expect("openapi/openapi.json is committed");
    assert!(
        committed == text,
        "openapi/openapi.json is out of date: run the test with UPDATE_OPENAPI=1 and look at the \
         difference"
    );
    // Every route that the document names is there.
    for (path, item) in served["paths"].as_object().expect("paths") {
        assert!(path.starts_with("/v1/"), "{path}");
        let path = path
            .replace("{fine_tuning_job_id}", "ftjob-none")
            .replace("{file_id}", "file-none")
            .replace("{upload_id}", "upload_none")
            .replace("{webhook_endpoint_id}", "whe_none")
            .replace("{fine_tuned_model_checkpoint}", "none")
            .replace("{permission_id}", "cp_none")
            .replace("{model}", "none");
        assert!(!path.contains('{'), "{path}");
        for method in item.as_object().expect("methods").keys() {
            let method = method.to_uppercase().parse().expect("a method");
            let reply = server.send(method, &path).await;
            let body: Value = reply.json();
            assert_ne!(reply.status, 405, "{path}");
            assert_ne!(body["error"]["code"], "route_not_found", "{path}");
        }
    }
    let viewer = server.get("/docs/").await;
    assert_eq!(viewer.status, 200);
    assert!(viewer.text.contains("swagger"), "the viewer is embedded");
}

/// Sends `text` and waits for the server to close the connection; how long that took.
async fn closed_after(server: &Server, text: &[u8]) -> Duration {
    let address = server.base.strip_prefix("http://").expect("an address");
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(text).await.expect("sends");
    let start = Instant::now();
    let mut reply = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(40), stream.read_to_end(&mut reply));
    let _ = end.await.expect("the server closes the connection");
    start.elapsed()
}

#[tokio::test]
async fn a_connection_that_never_sends_its_headers_is_closed() {
    let server = Server::start();
    let (silent, slow) = tokio::join!(
        closed_after(&server, b""),
        closed_after(&server, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n")
    );
    for waited in [silent, slow] {
        assert!((5..25).contains(&waited.as_secs()), "{waited:?}");
    }
}

/// Clients keep connections for the next request, which a server that closes them meanwhile would lose.
#[tokio::test]
async fn a_connection_may_rest_between_requests_but_not_within_a_head() {
    let server = Server::start();
    let address = server.base.strip_prefix("http://").expect("an address");
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let mut reply = [0; 4096];
    for _ in 0..2 {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("sends");
        let length = stream.read(&mut reply).await.expect("it is read");
        assert!(reply[..length].starts_with(b"HTTP/1.1 200"), "{length} bytes");
        tokio::time::sleep(Duration::from_secs(12)).await;
    }
    stream.write_all(b"GET /healthz HTTP/1.1\r\n").await.expect("sends");
    let start = Instant::now();
    let end = tokio::time::timeout(Duration::from_secs(40), stream.read(&mut reply));
    let _ = end.await.expect("the server closes the connection");
    assert!((5..25).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_body_that_never_ends_is_refused() {
    let server = Server::start();
    let address = server.base.strip_prefix("http://").expect("an address");
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let head =
        "POST /v1/fine_tuning/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.expect("sends");
    let start = Instant::now();
    let mut reply = [0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut reply));
    let length = read.await.expect("a reply comes").expect("it is read");
    let reply = String::from_utf8_lossy(&reply[..length]);
    assert!(reply.starts_with("HTTP/1.1 400") && reply.contains("took more than"), "{reply}");
    assert!((10..40).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_shutdown_lets_a_running_request_end_and_takes_no_new_one() {
    let mut server = Server::start();
    let body = json!({"model": TINY, "max_tokens": 300, "temperature": 1.0, "seed": 3, "n": 8,
        "messages": [{"role": "user", "content": "What comes after 3?"}]});
    let request = server.client.post(format!("{}/v1/chat/completions", server.base)).json(&body);
    let running = tokio::spawn(request.send());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let status = tokio::task::spawn_blocking(move || server.stop()).await.expect("ended");
    assert!(status.success());
    let reply = running.await.expect("no panic").expect("a reply");
    assert_eq!(reply.status(), 200);
}

#[tokio::test]
async fn a_server_that_is_told_to_end_as_soon_as_it_listens_ends_in_order() {
    for _ in 0..8 {
        assert!(Server::start().stop().success());
    }
}

#[tokio::test]
async fn a_state_conflict_says_not_to_retry() {
    let server = Server::start();
    let id = server.create_job(&chat_lines(9), json!({})).await;
    let reply = server.send(Method::POST, &format!("/v1/fine_tuning/jobs/{id}/cancel")).await;
    // 400, and none of the statuses that clients retry.
    reply.error(400);
}

#[tokio::test]
async fn a_client_that_speaks_http_2_unasked_is_told_in_its_own_frames() {
    let server = Server::start();
    let address = server.base.strip_prefix("http://").expect("an address");
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let hello = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings].concat();
    stream.write_all(&hello).await.expect("it is open");
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.expect("it ends in order");
    let (first, goaway) = reply.split_at_checked(9).expect("a frame");
    assert_eq!(first, settings);
    let (head, body) = goaway.split_at_checked(9).expect("a frame");
    assert_eq!(head[..4], [0, 0, body.len() as u8, 7], "GOAWAY, and nothing after it");
    assert_eq!(body[4..8], [0, 0, 0, 0xd], "HTTP_1_1_REQUIRED");
    assert!(body[8..].starts_with(b"hone speaks HTTP/1.1"));
}

/// A library that sets the clock of a program; `None` where there is no compiler.
fn clock_before_1970(folder: &Path) -> Option<PathBuf> {
    let (source, library) = (folder.join("clock.cc"), folder.join("clock.so"));
    let code = "#include <time.h>\n#include <sys/syscall.h>\n#include <unistd.h>\n\
        extern \"C\" int clock_gettime(clockid_t clock, struct timespec *now) noexcept {\n\
        long failed = syscall(SYS_clock_gettime, clock, now);\n\
        if (clock == CLOCK_REALTIME) now->tv_sec = -86400;\n\
        return failed; }\n";
    std::fs::write(&source, code).expect("writes");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    let mut command = Command::new(compiler);
    command.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
    match command.output() {
        Ok(output) if output.status.success() => Some(library),
        other => {
            println!("not run: {other:?}");
            None
        }
    }
}

#[test]
fn a_clock_before_1970_is_refused_at_start_in_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(library) = clock_before_1970(folder.path()) else { return };
    for arguments in [&["serve", "--listen", "127.0.0.1:0"][..], &["keys", "list"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hone"));
        command.args(arguments).arg("--data-dir").arg(folder.path().join("data"));
        command.env("LD_PRELOAD", &library).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.stdout(Stdio::null()).spawn().expect("it runs");
        let began = Instant::now();
        while child.try_wait().expect("its state").is_none() {
            if began.elapsed() > Duration::from_secs(20) {
                child.kill().expect("killed");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = child.wait_with_output().expect("ended");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(message.contains("clock is set to a time before 1970"), "{message}");
        assert!(!message.contains("panicked"), "{message}");
    }
}

/// A copy of the tiny model in a new folder.
fn copy_tiny(folder: &Path) {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(TINY);
    std::fs::create_dir(folder).expect("makes");
    for entry in std::fs::read_dir(&tiny).expect("reads") {
        let entry = entry.expect("reads");
        std::fs::copy(entry.path(), folder.join(entry.file_name())).expect("copies");
    }
}

#[tokio::test]
async fn a_slow_models_folder_delays_only_those_who_ask_for_models() {
    let (models, data) =
        (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    copy_tiny(&models.path().join(TINY));
    let server = Server::start_over(data.path(), models.path());
    // Every read of a folder takes a second from now on.
    let tracer = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=getdents64"])
        .args(["-e", "inject=getdents64:delay_enter=1000000", "-p", &server.pid().to_string()])
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut tracer) = tracer else {
        println!("not run: there is no strace");
        return;
    };
    // Until it is attached, which a system may not allow.
    let began = Instant::now();
    let scan = loop {
        let asked = Instant::now();
        server.get("/v1/models").await.ok();
        if asked.elapsed() > Duration::from_secs(1) || began.elapsed() > Duration::from_secs(10) {
            break asked.elapsed();
        }
    };
    if scan > Duration::from_secs(1) {
        let chat = json!({"model": TINY, "messages": [{"role": "user", "content": "a"}],
            "max_tokens": 1});
        let asked = Instant::now();
        let chats = (0..8).map(|_| server.post("/v1/chat/completions", chat.clone()));
        let others = async {
            let mut longest = Duration::ZERO;
            while asked.elapsed() < Duration::from_secs(3) {
                let asked = Instant::now();
                server.get("/healthz").await.ok();
                longest = longest.max(asked.elapsed());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            longest
        };
        let (replies, longest) = tokio::join!(futures_util::future::join_all(chats), others);
        assert!(longest < Duration::from_secs(1), "{longest:?}");
        replies.iter().for_each(|reply| drop(reply.ok()));
        // They share the scans; the model is read from the same disk.
        assert!(asked.elapsed() < 7 * scan, "{:?}, and a scan takes {scan:?}", asked.elapsed());
    } else {
        println!("not run: strace cannot attach");
    }
    signal(tracer.id(), "TERM");
    tracer.wait().expect("ended");
}

#[tokio::test]
async fn no_message_names_a_path_of_the_server() {
    let models = tempfile::tempdir().expect("a folder");
    for (name, broken, content) in [
        ("no-config", "config.json", "{}"),
        ("no-tokenizer", "tokenizer.json", "nonsense"),
        ("no-weights", "model.safetensors", "nonsense"),
        ("no-template", "tokenizer_config.json", "nonsense"),
    ] {
        let folder = models.path().join(name);
        copy_tiny(&folder);
        std::fs::write(folder.join(broken), content).expect("writes");
    }
    let data = tempfile::tempdir().expect("a folder");
    let server = Server::start_over(data.path(), models.path());
    let file = server.upload(&chat_lines(10)).await;
    let mut failed = 0;
    let check = |text: &str| {
        for folder in [models.path(), data.path()] {
            let folder = folder.to_str().expect("UTF-8");
            assert!(!text.contains(folder), "{text}");
        }
    };
    for model in ["no-config", "no-tokenizer", "no-weights", "no-template"] {
        let chat = json!({"model": model, "messages": [{"role": "user", "content": "a"}]});
        let reply = server.post("/v1/chat/completions", chat).await;
        check(&reply.text);
        let job = json!({"model": model, "training_file": file});
        check(&server.post("/v1/fine_tuning/jobs?dry_run=true", job.clone()).await.text);
        let reply = server.post("/v1/fine_tuning/jobs", job).await;
        check(&reply.text);
        let id = reply.ok()["id"].as_str().expect("an id").to_owned();
        let job = server.until(&id, |job| !job["finished_at"].is_null()).await;
        failed += usize::from(job["status"] == "failed");
        check(&job.to_string());
        check(&json!(server.events(&id).await).to_string());
    }
    assert!(failed >= 3, "{failed}");
}
