//! Webhooks: whoever asks for it is told of every job's end, signed, until it is taken.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::server::{LOG, Server, chat_lines, make_key};
use crate::support::webhook_receiver::{
    ALL, Answer, Receiver, log, log_until, server, status, text,
};
use crate::train::real_model::{given, script, succeed};

/// A job that fails when it is created: nine examples are too few.
async fn fail_at_creation(server: &Server) -> String {
    server.create_job(&chat_lines(9), json!({})).await
}

fn is_delivered(delivery: &Value) -> bool {
    delivery["status"] == "delivered"
}

#[tokio::test]
async fn every_end_of_a_job_is_told_once_and_signed() {
    let server = server();
    let receiver = Receiver::start().await;
    let endpoint = receiver.endpoint(&server, &ALL).await;
    let secret = text(&endpoint["signing_secret"]);
    let cancel = async |id: &str| {
        server.send(Method::POST, &format!("/v1/fine_tuning/jobs/{id}/cancel")).await.ok();
        // Again: nothing more happens, so nothing more is told.
        server.send(Method::POST, &format!("/v1/fine_tuning/jobs/{id}/cancel")).await.ok();
    };
    let long = json!({"n_epochs": 50, "batch_size": 1});

    let failed_at_creation = fail_at_creation(&server).await;
    let succeeded = server.create_job(&chat_lines(10), json!({"n_epochs": 1})).await;
    server.ended(&succeeded, "succeeded").await;
    // Room for the prompts alone, and so for nothing to learn.
    let no_room = json!({"context_length": 8});
    let failed_in_training = server.create_job(&chat_lines(10), no_room).await;
    server.ended(&failed_in_training, "failed").await;
    let running = server.create_job(&chat_lines(200), long.clone()).await;
    server.under_way(&running).await;
    let waiting = server.create_job(&chat_lines(200), long).await;
    cancel(&waiting).await;
    cancel(&running).await;

    let mut told = Vec::new();
    for one in receiver.until(5).await {
        assert_eq!((one.path.as_str(), one.header("content-type")), ("/hook", "application/json"));
        assert!(one.header("user-agent").starts_with("hone/"));
        assert!(one.is_signed_by(secret), "{one:#?}");
        let body = one.json();
        let (id, kind) = (text(&body["data"]["id"]).to_owned(), text(&body["type"]).to_owned());
        let job = server.job(&id).await;
        let expected = json!({"id": body["id"], "object": "event", "type": kind,
            "created_at": job["finished_at"], "data": {"id": id}});
        assert_eq!(body, expected);
        assert!(
            text(&body["id"]).starts_with("evt_") && one.header("webhook-id").starts_with("wh_")
        );
        told.push((id, kind));
    }
    for (id, kind) in [
        (failed_at_creation, ALL[1]),
        (succeeded, ALL[0]),
        (failed_in_training, ALL[1]),
        (waiting, ALL[2]),
        (running, ALL[2]),
    ] {
        assert!(told.contains(&(id.clone(), kind.to_owned())), "{id} {kind}: {told:?}");
    }
    let log = log_until(&server, &endpoint, |log| log.iter().all(is_delivered)).await;
    assert_eq!(log.len(), 5);
    assert_eq!(receiver.received().len(), 5, "each once");
}

#[tokio::test]
async fn a_delivery_that_fails_is_signed_anew_and_tried_again_under_the_same_id() {
    let server = server();
    let receiver = Receiver::answering(|number| status([500, 404, 204][number])).await;
    let endpoint = receiver.endpoint(&server, &ALL).await;
    let job = fail_at_creation(&server).await;

    receiver.until(1).await;
    let waits = |log: &[Value]| log[0]["attempts"].as_array().is_some_and(|tries| tries.len() == 1);
    let log = log_until(&server, &endpoint, waits).await;
    assert_eq!(log[0]["status"], "pending");
    assert!(log[0]["next_attempt_at"].as_i64() > log[0]["attempts"][0]["at"].as_i64());

    let received = receiver.until(3).await;
    let secret = text(&endpoint["signing_secret"]);
    for one in &received {
        assert_eq!(one.header("webhook-id"), received[0].header("webhook-id"));
        assert_eq!(one.body, received[0].body, "the same bytes");
        assert!(one.is_signed_by(secret));
    }
    let times: Vec<i64> = received.iter().map(|one| one.timestamp()).collect();
    assert!(times[0] < times[1] && times[1] < times[2], "fresh timestamps: {times:?}");
    assert!(times[2] - times[1] >= 3, "the waits grow: {times:?}");
    assert_ne!(received[0].header("webhook-signature"), received[2].header("webhook-signature"));

    let log = log_until(&server, &endpoint, |log| is_delivered(&log[0])).await;
    let attempt = |at: i64, status_code: u16, error: Value| json!({"at": at, "status_code": status_code, "error": error});
    let event = received[0].json();
    let expected = json!({
        "id": received[0].header("webhook-id"),
        "object": "webhook_endpoint.delivery",
        "webhook_endpoint_id": endpoint["id"],
        "event": {"id": event["id"], "created_at": event["created_at"], "type": ALL[1],
            "data_id": job},
        "status": "delivered",
        "attempts": [
            attempt(times[0], 500, json!("the endpoint answered 500")),
            attempt(times[1], 404, json!("the endpoint answered 404")),
            attempt(times[2], 204, Value::Null),
        ],
        "next_attempt_at": null,
    });
    assert_eq!(log, [expected]);
}

#[tokio::test]
async fn a_server_killed_before_its_delivery_was_taken_delivers_after_its_restart() {
    let mut server = server();
    // Takes the first request, and is still thinking when the server dies.
    let receiver = Receiver::answering(|number| Answer {
        delay: Duration::from_secs(if number == 0 { 60 } else { 0 }),
        ..status(200)
    })
    .await;
    let endpoint = receiver.endpoint(&server, &ALL).await;
    let job = fail_at_creation(&server).await;
    let first = receiver.until(1).await.remove(0);
    server = server.kill_and_restart();

    let second = receiver.until(2).await.remove(1);
    assert_eq!(
        second.header("webhook-id"),
        first.header("webhook-id"),
        "receivers see the repetition"
    );
    assert_eq!(second.body, first.body);
    assert!(second.is_signed_by(text(&endpoint["signing_secret"])));
    log_until(&server, &endpoint, |log| is_delivered(&log[0])).await;

    // The same when the end of a job and the kill are one: nothing was sent before.
    let long = json!({"n_epochs": 50, "batch_size": 1});
    let running = server.create_job(&chat_lines(200), long).await;
    server.under_way(&running).await;
    server.send(Method::POST, &format!("/v1/fine_tuning/jobs/{running}/cancel")).await.ok();
    server = server.kill_and_restart();
    let log = log_until(&server, &endpoint, |log| log.len() == 2 && is_delivered(&log[0])).await;
    let ids: Vec<&str> = log.iter().map(|one| text(&one["event"]["data_id"])).collect();
    assert_eq!(ids, [running.as_str(), job.as_str()], "newest first");
}

#[tokio::test]
async fn only_events_that_are_asked_for_are_sent_and_none_to_a_deleted_endpoint() {
    let server = server();
    let [control, other, deleted, ceased] = [
        Receiver::start().await,
        Receiver::start().await,
        Receiver::answering(|_number| status(503)).await,
        Receiver::answering(|_number| status(503)).await,
    ];
    control.endpoint(&server, &ALL).await;
    let of_other = other.endpoint(&server, &[ALL[0], ALL[2], "batch.failed"]).await;
    let of_deleted = deleted.endpoint(&server, &ALL).await;
    let of_ceased = ceased.endpoint(&server, &ALL).await;
    fail_at_creation(&server).await;
    deleted.until(1).await;
    ceased.until(1).await;

    // Both have a delivery that would be tried again.
    let path = |endpoint: &Value| format!("/v1/webhook_endpoints/{}", text(&endpoint["id"]));
    let reply = server.delete(&path(&of_deleted)).await.ok();
    let expected =
        json!({"id": of_deleted["id"], "object": "webhook_endpoint.deleted", "deleted": true});
    assert_eq!(reply, expected);
    server.post(&path(&of_ceased), json!({"event_types": [ALL[0]]})).await.ok();
    let log_of_ceased = log(&server, &of_ceased).await;
    assert_eq!(log_of_ceased[0]["status"], "failed");
    let attempts = log_of_ceased[0]["attempts"].as_array().expect("a list");
    let reason = text(&attempts[attempts.len() - 1]["error"]);
    assert!(reason.contains("no longer asks for this event"), "{reason}");
    let (before_deleted, before_ceased) = (deleted.received().len(), ceased.received().len());

    fail_at_creation(&server).await;
    control.until(2).await;
    // Longer than the second and the third attempt would have waited.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(deleted.received().len(), before_deleted);
    assert_eq!(ceased.received().len(), before_ceased);
    assert_eq!(other.received().len(), 0, "no event of those it asks for");
    assert!(log(&server, &of_other).await.is_empty());
    for method in [Method::GET, Method::DELETE] {
        let error = server.send(method, &path(&of_deleted)).await.error(404);
        assert_eq!(error["code"], "webhook_endpoint_not_found");
    }
}

#[tokio::test]
async fn a_receiver_that_is_slow_does_not_hold_back_the_others() {
    let server = server();
    let slow =
        Receiver::answering(|_number| Answer { delay: Duration::from_secs(8), ..status(200) })
            .await;
    let quick = Receiver::start().await;
    let of_slow = slow.endpoint(&server, &ALL).await;
    let of_quick = quick.endpoint(&server, &ALL).await;
    let start = Instant::now();
    for _ in 0..8 {
        fail_at_creation(&server).await;
    }
    log_until(&server, &of_quick, |log| log.iter().filter(|one| is_delivered(one)).count() == 8)
        .await;
    assert!(start.elapsed() < Duration::from_secs(7), "{:?}", start.elapsed());
    assert!(!log(&server, &of_slow).await.iter().any(is_delivered), "it has not answered yet");
    assert!(slow.received().len() <= 4, "an endpoint is not asked by everything at once");
}

#[tokio::test]
async fn endpoints_are_made_changed_listed_and_paged() {
    let server = server();
    let base = "/v1/webhook_endpoints";
    let body = json!({"name": "mine", "url": "https://example.com/hook",
        "event_types": ["batch.completed", ALL[0], ALL[0]]});
    let made = server.post(base, body).await.ok();
    let id = text(&made["id"]);
    let secret = text(&made["signing_secret"]);
    let mut expected = json!({"id": id, "object": "webhook_endpoint",
        "created_at": made["created_at"], "updated_at": made["created_at"], "name": "mine",
        "url": "https://example.com/hook", "event_types": ["batch.completed", ALL[0]],
        "never_sent_event_types": ["batch.completed"],
        "signing_secret_hint": format!("whsec_...{}", &secret[secret.len() - 4..]),
        "signing_secret": secret});
    assert_eq!(made, expected);
    assert!(secret.starts_with("whsec_") && secret.len() >= 6 + 44, "{secret}");
    expected.as_object_mut().expect("an object").remove("signing_secret");
    let path = format!("{base}/{id}");
    assert_eq!(server.get(&path).await.ok(), expected, "the secret is not shown again");

    // A change that changes nothing is none.
    server.set_time("UPDATE webhook_endpoints SET updated_at = 1 WHERE id = $1", id).await;
    expected["updated_at"] = json!(1);
    assert_eq!(server.post(&path, json!({"name": "mine"})).await.ok(), expected);
    let changed = server.post(&path, json!({"name": "yours", "url": null})).await.ok();
    assert!(changed["updated_at"].as_i64() > Some(1));
    expected["updated_at"] = changed["updated_at"].clone();
    expected["name"] = json!("yours");
    assert_eq!(changed, expected);

    let mut ids = vec![id.to_owned()];
    for number in 0..4 {
        let body = json!({"name": format!("n{number}"), "url": "https://example.com/hook",
            "event_types": ALL});
        ids.push(text(&server.post(base, body).await.ok()["id"]).to_owned());
    }
    ids.reverse();
    let mut seen: Vec<String> = Vec::new();
    loop {
        let after = seen.last().map(String::as_str).unwrap_or_default();
        let page = server.get(&format!("{base}?limit=2&after={after}")).await.ok();
        let data = page["data"].as_array().expect("a list");
        assert_eq!((&page["object"], &page["first_id"]), (&json!("list"), &data[0]["id"]));
        assert_eq!(page["last_id"], data[data.len() - 1]["id"]);
        assert!(data.iter().all(|one| one.get("signing_secret").is_none()));
        seen.extend(data.iter().map(|one| text(&one["id"]).to_owned()));
        if page["has_more"] == false {
            break;
        }
    }
    assert_eq!(seen, ids, "newest first, each once");
    let types = server.get("/v1/webhook_event_types").await.ok();
    assert_eq!(types, json!({"object": "list", "data": ALL}));

    server.get(&format!("{base}?after=whe_none")).await.error(400);
    for (path, body) in [("", None), ("/rotate_secret", None), ("/test", Some(json!({})))] {
        let path = format!("{base}/whe_none{path}");
        let body = body.unwrap_or(json!({}));
        assert_eq!(server.post(&path, body).await.error(404)["param"], "webhook_endpoint_id");
    }
    server.get(&format!("{base}/whe_none/deliveries")).await.error(404);
}

#[tokio::test]
async fn a_wrong_field_is_named_with_what_is_allowed() {
    let server = server();
    for (name, url, event_types, param, says) in [
        ("", "https://example.com", json!(ALL), "name", "1 to 256"),
        ("n", "example.com", json!(ALL), "url", "https://host/path"),
        ("n", "https://example.com", json!([]), "event_types", ALL[2]),
        ("n", "https://example.com", json!(["job.done"]), "event_types[0]", ALL[2]),
        ("n", "https://example.com", json!(["video.failed"]), "event_types", ALL[2]),
    ] {
        let body = json!({"name": name, "url": url, "event_types": event_types});
        let error = server.post("/v1/webhook_endpoints", body.clone()).await.error(400);
        assert_eq!(error["param"], param, "{body}");
        assert!(text(&error["message"]).contains(says), "{error}");
    }
    for number in 0..=100 {
        let body = json!({"name": "n", "url": "https://192.0.1.1/", "event_types": ALL});
        let reply = server.post("/v1/webhook_endpoints", body).await;
        assert_eq!(reply.status, if number < 100 { 200 } else { 400 }, "{number}: {}", reply.text);
    }
}

#[tokio::test]
async fn after_a_rotation_the_old_secret_signs_beside_the_new_one_only_when_asked_to() {
    let server = server();
    let receiver = Receiver::start().await;
    let made = receiver.endpoint(&server, &ALL).await;
    let path = format!("/v1/webhook_endpoints/{}/rotate_secret", text(&made["id"]));
    let keep = json!({"keep_old_secret_active_for_24_hours": true});
    let kept = server.post(&path, keep).await.ok();
    let [first, second] = [&made, &kept].map(|reply| text(&reply["signing_secret"]).to_owned());
    assert_ne!(first, second);
    fail_at_creation(&server).await;
    let both = receiver.until(1).await.remove(0);
    assert_eq!(both.header("webhook-signature").split(' ').count(), 2);
    assert!(both.is_signed_by(&first) && both.is_signed_by(&second));

    // A day later.
    let over = "UPDATE webhook_endpoints SET previous_secret_until = unixepoch() WHERE id = $1";
    server.set_time(over, text(&made["id"])).await;
    fail_at_creation(&server).await;
    let one = receiver.until(2).await.remove(1);
    assert!(!one.is_signed_by(&first) && one.is_signed_by(&second));

    // Clients send no body when they have nothing to say.
    let rotated = server.send(Method::POST, &path).await.ok();
    let third = text(&rotated["signing_secret"]);
    fail_at_creation(&server).await;
    let last = receiver.until(3).await.remove(2);
    assert!(!last.is_signed_by(&second) && last.is_signed_by(third));
}

#[tokio::test]
async fn secrets_are_not_logged() {
    let server = Server::start_with(&[("HONE_WEBHOOK_ALLOW", "127.0.0.1"), ("RUST_LOG", "trace")]);
    let receiver = Receiver::answering(|number| status(if number == 0 { 500 } else { 200 })).await;
    let made = receiver.endpoint(&server, &ALL).await;
    let path = format!("/v1/webhook_endpoints/{}", text(&made["id"]));
    let keep = json!({"keep_old_secret_active_for_24_hours": true});
    let rotated = server.post(&format!("{path}/rotate_secret"), keep).await.ok();
    server.post(&format!("{path}/test"), json!({"event_type": ALL[0]})).await.ok();
    fail_at_creation(&server).await;
    receiver.until(2).await;
    log_until(&server, &made, |log| is_delivered(&log[0])).await;
    server.get(&path).await.ok();
    let logged = std::fs::read_to_string(server.data_dir().join(LOG)).expect("a log");
    assert!(logged.contains("webhook delivered") && logged.contains("INSERT INTO"), "it says much");
    for reply in [made, rotated] {
        let secret = text(&reply["signing_secret"]).trim_start_matches("whsec_");
        assert!(!logged.contains(secret), "a secret stands in the log");
    }
}

#[tokio::test]
async fn a_sample_shows_what_the_endpoint_answers() {
    let server = server();
    let receiver = Receiver::answering(|number| status([200, 418][number])).await;
    let endpoint = receiver.endpoint(&server, &ALL).await;
    let path = format!("/v1/webhook_endpoints/{}/test", text(&endpoint["id"]));
    for (number, answer) in [200, 418].into_iter().enumerate() {
        let result = server.post(&path, json!({"event_type": ALL[number]})).await.ok();
        let expected = json!({"object": "webhook_endpoint.test", "success": true,
            "webhook_endpoint_id": endpoint["id"], "event_type": ALL[number], "status_code": answer});
        assert_eq!(result, expected);
        let sample = receiver.until(number + 1).await.remove(number);
        assert!(sample.is_signed_by(text(&endpoint["signing_secret"])));
        assert_eq!(sample.json()["type"], ALL[number]);
        assert_eq!(sample.json()["data"]["id"], "ftjob-sample");
    }
    assert!(log(&server, &endpoint).await.is_empty(), "a sample is no delivery");
    assert_eq!(
        server.get(&path.replace("/test", "")).await.ok()["updated_at"],
        endpoint["updated_at"]
    );
    for wrong in ["batch.failed", "job.done", ""] {
        let error = server.post(&path, json!({"event_type": wrong})).await.error(400);
        assert_eq!(error["param"], "event_type");
    }
    drop(receiver);
    let error = server.post(&path, json!({"event_type": ALL[0]})).await.error(400);
    assert_eq!(error["code"], "webhook_unreachable", "none of the statuses that clients retry");
}

#[tokio::test]
async fn the_openai_sdk_manages_endpoints_and_verifies_deliveries_and_their_repetition() {
    let Some(python) = given("HONE_TEST_PYTHON") else { return };
    let server = server();
    succeed(script(&python, "sdk_webhooks.py").arg(&server.base));
}

#[tokio::test]
async fn openais_clients_for_node_verify_deliveries_and_their_repetition() {
    let Some(node) = given("HONE_TEST_NODE") else { return };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/sdk_webhooks.mjs");
    for package in ["openai-6", "openai-7"] {
        let server = server();
        succeed(Command::new(&node).arg(&file).args([&server.base, package]));
    }
}

#[tokio::test]
async fn a_projects_webhook_comes_soon_beside_sixty_endpoints_that_hang() {
    let mut server = server();
    let hanging =
        Receiver::answering(|_| Answer { delay: Duration::from_secs(60), ..status(200) }).await;
    let hanging_keys = ["team-a", "team-b", "team-c"].map(|name| make_key(server.data_dir(), name));
    let ours = make_key(server.data_dir(), "team-d");
    for (key, endpoints) in hanging_keys.iter().zip([40, 10, 10]) {
        server.act_with(key);
        for _ in 0..endpoints {
            hanging.endpoint(&server, &ALL).await;
        }
        for _ in 0..6 {
            fail_at_creation(&server).await;
        }
    }
    // Until they hang.
    let began = Instant::now();
    while hanging.received().len() < 60 {
        assert!(began.elapsed() < Duration::from_secs(30), "{}", hanging.received().len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.act_with(&ours);
    let receiver = Receiver::answering(|_| status(200)).await;
    receiver.endpoint(&server, &ALL).await;
    for count in 1..=3 {
        let began = Instant::now();
        fail_at_creation(&server).await;
        receiver.until(count).await;
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "delivery {count}: {:?}",
            began.elapsed()
        );
    }
}
