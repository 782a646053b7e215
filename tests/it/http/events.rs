//! `…/events`: in pages that meet while events are written, and as a stream that misses none.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::server::{Server, chat_lines};

/// What a stream of server-sent events has said.
#[derive(Debug, Default)]
struct Said {
    /// Events with their ids, as they came.
    events: Vec<Value>,
    /// Comment lines.
    comments: Vec<String>,
    /// Whether `[DONE]` came.
    is_done: bool,
}

/// Reads a job's stream until it closes, or until `enough`.
async fn follow(
    server: &Server,
    id: &str,
    last_seen: Option<&str>,
    enough: impl Fn(&Said) -> bool,
) -> Said {
    let url = format!("{}/v1/fine_tuning/jobs/{id}/events?stream=true", server.base);
    let mut request = server.client.get(url);
    if let Some(last_seen) = last_seen {
        request = request.header("last-event-id", last_seen);
    }
    let reply = request.send().await.expect("a reply");
    assert_eq!(reply.status(), 200);
    assert_eq!(reply.headers()["content-type"], "text/event-stream");
    assert!(reply.headers().contains_key("x-request-id"));
    let mut bytes = reply.bytes_stream();
    let mut text = String::new();
    let mut said = Said::default();
    while !enough(&said) {
        let Some(chunk) = bytes.next().await else { break };
        text.push_str(std::str::from_utf8(&chunk.expect("bytes")).expect("UTF-8"));
        while let Some((message, rest)) = text.split_once("\n\n") {
            hear(&mut said, message);
            text = rest.to_owned();
        }
    }
    said
}

fn hear(said: &mut Said, message: &str) {
    assert!(!said.is_done, "nothing comes after [DONE]: {message}");
    let mut id = None;
    for line in message.lines() {
        let (field, value) = line.split_once(": ").unwrap_or_else(|| panic!("{line:?}"));
        match (field, value) {
            ("", comment) => said.comments.push(comment.to_owned()),
            ("id", value) => id = Some(value.to_owned()),
            ("data", "[DONE]") => said.is_done = true,
            ("data", json) => {
                let event: Value = serde_json::from_str(json).expect("JSON");
                assert_eq!(event["id"].as_str(), id.as_deref(), "the id comes first");
                said.events.push(event);
            }
            _ => panic!("{line:?}"),
        }
    }
}

/// All events by the plain list, oldest first.
async fn all(server: &Server, id: &str) -> Vec<Value> {
    let mut events = server.events(id).await;
    events.reverse();
    events
}

fn to_the_end(_: &Said) -> bool {
    false
}

#[tokio::test]
async fn a_stream_begins_with_the_first_event_and_ends_with_the_job() {
    let server = Server::start();
    let id = server.create_job(&chat_lines(12), json!({"n_epochs": 10, "batch_size": 1})).await;
    let said = follow(&server, &id, None, to_the_end).await;
    assert!(said.is_done);
    let job = server.job(&id).await;
    assert_eq!(job["status"], "succeeded", "the stream ends when the job has ended");
    let listed = all(&server, &id).await;
    assert!(listed.len() > 120);
    assert_eq!(said.events, listed);
    // What has ended is told again.
    let again = follow(&server, &id, None, to_the_end).await;
    assert!(again.is_done);
    assert_eq!(again.events, listed);
}

#[tokio::test]
async fn a_client_that_comes_again_misses_no_event_and_sees_none_twice() {
    let mut server = Server::start();
    let id = server.create_job(&chat_lines(12), json!({"n_epochs": 20, "batch_size": 1})).await;
    let mut seen: Vec<Value> = Vec::new();
    for round in 1.. {
        let last = seen.last().map(|event| event["id"].as_str().expect("an id").to_owned());
        // As much as comes in a moment, then the connection breaks.
        let said = follow(&server, &id, last.as_deref(), |said| said.events.len() > 30).await;
        seen.extend(said.events);
        if said.is_done {
            break;
        }
        if round == 2 {
            server = server.kill_and_restart();
        }
    }
    assert_eq!(seen, all(&server, &id).await);
    let last = seen[seen.len() - 1]["id"].as_str().expect("an id");
    let rest = follow(&server, &id, Some(last), to_the_end).await;
    assert!(rest.is_done && rest.events.is_empty(), "{rest:?}");
    // The same place in the query, for clients that cannot set a header.
    let second = seen[1]["id"].as_str().expect("an id");
    let path = format!("/v1/fine_tuning/jobs/{id}/events?stream=1&after={second}");
    let reply = server.get(&path).await;
    assert!(reply.text.contains(seen[2]["id"].as_str().expect("an id")));
    assert!(!reply.text.contains(second));
}

#[tokio::test]
async fn a_silent_stream_says_that_it_lives_and_a_shutdown_closes_it() {
    let mut server = Server::start();
    let id = server.create_job(&chat_lines(12), json!({"n_epochs": 50, "batch_size": 1})).await;
    server.under_way(&id).await;
    server.send(Method::POST, &format!("/v1/fine_tuning/jobs/{id}/pause")).await.ok();
    let said = follow(&server, &id, None, |said| !said.comments.is_empty()).await;
    assert!(!said.is_done && !said.events.is_empty(), "a pause is no end");

    let url = format!("{}/v1/fine_tuning/jobs/{id}/events?stream=true", server.base);
    let reply = server.client.get(url).send().await.expect("a reply");
    let start = Instant::now();
    let status = tokio::task::spawn_blocking(move || server.stop()).await.expect("ended");
    assert!(status.success());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let text = reply.text().await.expect("the stream is closed in order");
    assert!(text.ends_with(": the server is shutting down\n\n"), "{text}");
}

#[tokio::test]
async fn what_a_stream_cannot_do_is_an_ordinary_error() {
    let server = Server::start();
    let id = server.create_job(&chat_lines(9), json!({})).await;
    let base = format!("/v1/fine_tuning/jobs/{id}/events");
    for (query, param) in [
        ("stream=maybe", "stream"),
        ("stream=true&limit=5", "limit"),
        ("stream=true&after=ftevent-none", "after"),
        ("after=ftevent-none", "after"),
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=ten", "limit"),
    ] {
        let error = server.get(&format!("{base}?{query}")).await.error(400);
        assert_eq!(error["param"], param, "{query}");
    }
    let request = server.client.get(format!("{}{base}?stream=true", server.base));
    let reply = request.header("last-event-id", "ftevent-none").send().await.expect("a reply");
    let error = crate::support::server::Reply::read(reply).await.error(400);
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("invalid_cursor"), &json!("Last-Event-ID"))
    );
    server.get("/v1/fine_tuning/jobs/ftjob-none/events?stream=true").await.error(404);
    // A limit beyond the most is lowered to it, however large.
    for query in ["limit=1000", "limit=99999999999999999999999999", "stream=false", "stream=0"] {
        let page = server.get(&format!("{base}?{query}")).await.ok();
        assert_eq!(page["has_more"], false, "{query}");
    }
}

#[tokio::test]
async fn pages_of_a_running_job_meet_without_gaps() {
    let server = Server::start();
    let id = server.create_job(&chat_lines(12), json!({"n_epochs": 20, "batch_size": 1})).await;
    server.under_way(&id).await;
    let mut walks = 0;
    loop {
        let has_ended = !server.job(&id).await["finished_at"].is_null();
        let mut walked: Vec<Value> = Vec::new();
        loop {
            let after = walked.last().and_then(|last| last["id"].as_str()).unwrap_or_default();
            let path = format!("/v1/fine_tuning/jobs/{id}/events?limit=7&after={after}");
            let page = server.get(&path).await.ok();
            walked.extend(page["data"].as_array().expect("a list").clone());
            if page["has_more"] == false {
                break;
            }
        }
        walked.reverse();
        let listed = all(&server, &id).await;
        assert_eq!(walked, listed[..walked.len()], "all that there was when the walk began");
        walks += 1;
        if has_ended {
            break;
        }
    }
    assert!(walks > 1, "the job had ended before the first walk");
}
