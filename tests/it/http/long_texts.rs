//! Long texts: whatever a client writes, what the server repeats of it in replies, rows and events has a
//! length of its own.

use reqwest::Method;
use serde_json::{Value, json};

use crate::http::request_fields::{requests, schema};
use crate::support::server::{Reply, Server, TINY};

/// Most bytes of an error.
const MOST_ERROR: usize = 8 * 1024;

/// Most bytes that a request of a hundred bytes may cost, in its reply and on the disk.
const MOST_COST: u64 = 100_000;

/// Bytes that a process has written so far, to files and sockets.
fn written(server: &Server) -> u64 {
    let counters = std::fs::read_to_string(format!("/proc/{}/io", server.pid())).expect("Linux");
    let line = counters.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.expect("a counter").parse().expect("a number")
}

/// Lines with a problem each that holds a text of a mebibyte.
fn long_problems() -> String {
    let long = "x".repeat(1 << 20);
    let mut lines = String::new();
    for number in 0..50 {
        let line = match number % 3 {
            0 => json!({&long: 1}),
            1 => json!({"messages": [{"role": long, "content": "a"}]}),
            _ => json!({"prompt": "a", "completion": "b", &long: 1}),
        };
        lines.push_str(&format!("{line}\n"));
    }
    lines
}

#[tokio::test]
async fn a_small_request_for_a_job_over_long_problems_replies_and_writes_little() {
    let server = Server::start();
    let file = server.upload(&long_problems()).await;
    let body = json!({"model": TINY, "training_file": file});
    let before = written(&server);
    let reply = server.post("/v1/fine_tuning/jobs", body.clone()).await;
    let cost = written(&server) - before;
    let job = reply.ok();
    assert_eq!(job["status"], "failed");
    assert!(reply.text.len() as u64 <= MOST_COST, "the reply: {}", reply.text.len());
    assert!(cost <= MOST_COST, "written: {cost}");
    let message = job["error"]["message"].as_str().expect("a text");
    assert!(message.contains("problems in the file"), "{message}");
    let id = job["id"].as_str().expect("an id");
    let small = [
        server.get(&format!("/v1/fine_tuning/jobs/{id}/events")).await,
        server.get("/v1/fine_tuning/jobs").await,
        server.post("/v1/fine_tuning/jobs?dry_run=true", body).await,
        server.get("/v1/files").await,
        server.get(&format!("/v1/files/{file}")).await,
    ];
    for reply in small {
        reply.ok();
        assert!(reply.text.len() as u64 <= MOST_COST, "{}", reply.text.len());
    }
}

/// Values that hold the text.
fn values(long: &str) -> [Value; 7] {
    [
        json!(long),
        json!([long]),
        json!({long: long}),
        json!([{"role": long, "content": "a"}]),
        json!([{"role": "user", "content": "a", long: 1}]),
        json!({"type": long, "name": long, "supervised": {"hyperparameters": {long: 1}}}),
        json!({"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": long}}}),
    ]
}

#[tokio::test]
async fn no_error_repeats_a_long_text_of_its_request() {
    let server = Server::start();
    let document = server.get("/openapi.json").await.ok();
    let (mut errors, mut cut) = (0, Vec::new());
    let mut check = |place: &str, reply: &Reply| {
        assert!(!reply.status.is_server_error(), "{place}: {}", reply.status);
        if !reply.status.is_success() {
            errors += 1;
            let error = reply.error(reply.status.as_u16());
            assert!(reply.text.len() <= MOST_ERROR, "{place}: {}", reply.text.len());
            // What to do comes after what was quoted.
            let message = error["message"].as_str().expect("a text");
            // The parsers of messages and templates quote by rules of their own.
            let is_of_parser = place.ends_with(" messages") || place.ends_with(" chat_template");
            if message.ends_with('…') && message.len() > MOST_ERROR / 3 && !is_of_parser {
                let shown: String = message.chars().take(100).collect();
                cut.push(format!("{place}: {shown}"));
            }
        }
    };
    let long = "\u{e000}".repeat(30_000);
    for request in requests(&server).await {
        for field in
            schema(&document, request.template)["properties"].as_object().expect("fields").keys()
        {
            for value in values(&long) {
                let mut body = request.body.clone();
                body[field] = value;
                check(
                    &format!("{} {field}", request.path),
                    &server.post(&request.path, body).await,
                );
            }
        }
        let mut body = request.body.clone();
        body[&long] = json!(1);
        check(&format!("{} unknown", request.path), &server.post(&request.path, body).await);
        let twice = format!("{{{0}: 1, {0}: 2}}", json!(long));
        let reply =
            server.client.post(format!("{}{}", server.base, request.path)).body(twice).send();
        check(
            &format!("{} twice", request.path),
            &Reply::read(reply.await.expect("a reply")).await,
        );
    }
    // Paths, queries and headers.
    let long = "é".repeat(2000);
    for path in [
        "/v1/files/LONG",
        "/v1/files/LONG/content",
        "/v1/models/LONG",
        "/v1/fine_tuning/jobs/LONG",
        "/v1/fine_tuning/jobs/LONG/events",
        "/v1/fine_tuning/checkpoints/LONG/permissions",
        "/v1/webhook_endpoints/LONG",
        "/LONG",
        "/v1/files?order=LONG",
        "/v1/files?purpose=LONG",
        "/v1/files?limit=LONG",
        "/v1/files?after=LONG",
        "/v1/fine_tuning/jobs?metadata=LONG",
        "/v1/fine_tuning/jobs?LONG=LONG&metadataLONG=1",
        "/v1/fine_tuning/jobs?metadata[LONG]=1&metadata[LONG]=2",
    ] {
        let reply = server.get(&path.replace("LONG", &long)).await;
        check(path, &reply);
    }
    for path in
        ["/v1/files/LONG", "/v1/models/LONG", "/v1/fine_tuning/checkpoints/LONG/permissions/LONG"]
    {
        check(path, &server.send(Method::DELETE, &path.replace("LONG", &long)).await);
    }
    assert!(errors > 200, "{errors}");
    assert_eq!(cut, [""; 0], "the end is missing");
}
