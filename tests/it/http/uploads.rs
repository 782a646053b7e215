//! `/v1/uploads`: large files in parts, which survive everything but their own end.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bytes::Bytes;
use hone::util::hex::hex;
use md5::{Digest, Md5};
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::support::server::{Reply, Server, TINY, chat_lines, gone, peak_memory};

/// What OpenAI's clients cut: parts of exactly 64 MiB.
const PART: usize = 64 * 1024 * 1024;

/// Begins an upload of so many bytes and returns its id.
async fn create(server: &Server, bytes: usize) -> String {
    let body = json!({"filename": "wire/big.jsonl", "purpose": "fine-tune", "bytes": bytes,
        "mime_type": "text/jsonl"});
    let upload = server.post("/v1/uploads", body).await.ok();
    assert_eq!((&upload["object"], &upload["status"]), (&json!("upload"), &json!("pending")));
    upload["id"].as_str().expect("an id").to_owned()
}

/// Sends a part as the Python SDK does: a file called `upload`.
async fn send(server: &Server, id: &str, content: impl Into<Bytes>) -> Reply {
    let part = Part::stream(reqwest::Body::from(content.into())).file_name("upload");
    send_form(server, id, Form::new().part("data", part)).await
}

async fn send_form(server: &Server, id: &str, form: Form) -> Reply {
    let url = format!("{}/v1/uploads/{id}/parts", server.base);
    let request = server.client.post(url).multipart(form);
    Reply::read(request.send().await.expect("a reply")).await
}

/// Sends a part and returns its id.
async fn add(server: &Server, id: &str, content: &str) -> String {
    let part = send(server, id, content.to_owned()).await.ok();
    part["id"].as_str().expect("an id").to_owned()
}

async fn complete(server: &Server, id: &str, body: Value) -> Reply {
    server.post(&format!("/v1/uploads/{id}/complete"), body).await
}

async fn cancel(server: &Server, id: &str) -> Reply {
    server.send(Method::POST, &format!("/v1/uploads/{id}/cancel")).await
}

fn md5_of(content: &str) -> String {
    hex(&Md5::digest(content))
}

/// The folder in which the bytes of parts, or of files, lie.
fn blobs(server: &Server, kind: &str) -> PathBuf {
    server.data_dir().join("blobs/objects").join(kind)
}

fn count(folder: PathBuf) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

#[tokio::test]
async fn parts_sent_in_any_order_become_a_file_that_trains() {
    let server = Server::start();
    let content = chat_lines(12);
    // Cut in the middle of lines.
    let (first, rest) = content.split_at(333);
    let (second, third) = rest.split_at(400);
    let id = create(&server, content.len()).await;
    let third_id = add(&server, &id, third).await;
    // As curl sends it: a plain field without a name.
    let plain = Form::new().text("data", first.to_owned());
    let part = send_form(&server, &id, plain).await.ok();
    assert_eq!((&part["object"], &part["upload_id"]), (&json!("upload.part"), &json!(id)));
    assert!(part["created_at"].is_i64());
    let first_id = part["id"].as_str().expect("an id").to_owned();
    assert!(first_id.starts_with("part_"));
    let second_id = add(&server, &id, second).await;
    // One more that is not used, as after a repeated request.
    add(&server, &id, second).await;

    let body = json!({"part_ids": [first_id, second_id, third_id], "md5": md5_of(&content)});
    let upload = complete(&server, &id, body.clone()).await.ok();
    assert_eq!((&upload["id"], &upload["status"]), (&json!(id), &json!("completed")));
    assert_eq!(upload["filename"], "big.jsonl");
    let file = &upload["file"];
    let file_id = file["id"].as_str().expect("an id");
    assert_eq!((&file["bytes"], &file["purpose"]), (&json!(content.len()), &json!("fine-tune")));
    assert_eq!(server.get(&format!("/v1/files/{file_id}")).await.ok(), *file);
    assert_eq!(server.get(&format!("/v1/files/{file_id}/content")).await.text, content);
    assert_eq!(count(blobs(&server, "parts")), 0, "the parts are not needed any more");
    assert_eq!(complete(&server, &id, body).await.ok(), upload, "a repetition says the same");

    let body = json!({"model": TINY, "training_file": file_id, "hyperparameters": {"n_epochs": 1}});
    let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
    server.ended(job["id"].as_str().expect("an id"), "succeeded").await;
}

#[tokio::test]
async fn a_completed_upload_is_judged_as_an_uploaded_file_is() {
    let server = Server::start();
    let mut lines: Vec<String> = chat_lines(12).lines().map(str::to_owned).collect();
    lines[6] = "{\"messages\": []}".to_owned();
    let content = lines.join("\n");
    let (first, second) = content.split_at(500);
    let id = create(&server, content.len()).await;
    let part_ids = [add(&server, &id, first).await, add(&server, &id, second).await];
    let upload = complete(&server, &id, json!({"part_ids": part_ids})).await.ok();
    let body = json!({"model": TINY, "training_file": upload["file"]["id"]});
    let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
    assert_eq!(job["status"], "failed");
    let message = job["error"]["message"].as_str().expect("a text");
    assert!(message.contains("line 7, key \"messages\""), "{message}");
}

#[tokio::test]
async fn eight_parts_of_64_mib_at_once_are_joined_in_constant_memory() {
    let server = Server::start();
    let line = json!({"messages": [
        {"role": "user", "content": "Tell me of the sea. ".repeat(20)},
        {"role": "assistant", "content": "The sea is deep. ".repeat(30)},
    ]});
    let line = format!("{line}\n");
    // Lines that do not end where parts end: 8 parts of the same bytes, cut in mid-line.
    let mut part = line.repeat(PART / line.len() + 1).into_bytes();
    part.truncate(PART);
    let part = Bytes::from(part);
    let id = create(&server, 8 * PART).await;
    let sent = (0..8).map(|_| send(&server, &id, part.clone()));
    let part_ids: Vec<Value> = futures_util::future::join_all(sent)
        .await
        .iter()
        .map(|reply| reply.ok()["id"].clone())
        .collect();
    let upload = complete(&server, &id, json!({"part_ids": part_ids})).await.ok();
    assert_eq!(upload["file"]["bytes"], 8 * PART);
    let peak = peak_memory(server.pid());
    assert!(peak < 150, "the server used {peak} MiB");

    let too_large = Bytes::from(vec![b'x'; PART + 1]);
    let id = create(&server, 2 * PART).await;
    let error = send(&server, &id, too_large).await.error(413);
    assert_eq!((&error["code"], &error["param"]), (&json!("file_too_large"), &json!("data")));
    assert!(error["message"].as_str().is_some_and(|text| text.contains("64 MiB")), "{error}");
    assert_eq!(count(blobs(&server, "parts")), 0);
}

#[tokio::test]
async fn a_completion_that_does_not_fit_is_refused_and_can_be_repeated_rightly() {
    let server = Server::start();
    let id = create(&server, 6).await;
    let foreign = create(&server, 6).await;
    let (abc, def) = (add(&server, &id, "abc").await, add(&server, &id, "def").await);
    let other = add(&server, &foreign, "def").await;
    let wrong_md5 = md5_of("defabc");
    for (body, param) in [
        (json!({"part_ids": [abc]}), "part_ids"),
        (json!({"part_ids": [abc, def, "part_none"]}), "part_ids[2]"),
        (json!({"part_ids": [abc, abc]}), "part_ids[1]"),
        (json!({"part_ids": [abc, other]}), "part_ids[1]"),
        (json!({"part_ids": []}), "part_ids"),
        (json!({}), "part_ids"),
        (json!({"part_ids": [abc, def], "md5": wrong_md5}), "md5"),
        (json!({"part_ids": [abc, def], "md5": "nonsense"}), "md5"),
    ] {
        assert_eq!(complete(&server, &id, body.clone()).await.error(400)["param"], param, "{body}");
    }
    assert_eq!(count(blobs(&server, "files")), 0, "nothing of the refused is kept");
    let md5 = wrong_md5.to_uppercase();
    let upload = complete(&server, &id, json!({"part_ids": [def, abc], "md5": md5})).await.ok();
    let file_id = upload["file"]["id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("/v1/files/{file_id}/content")).await.text, "defabc");
    assert_eq!(count(blobs(&server, "parts")), 1, "the other upload's part stays");

    // No more than twice what was announced: a repeated part, but no endless stream of them.
    for _ in 0..3 {
        send(&server, &foreign, "def").await.ok();
    }
    assert_eq!(send(&server, &foreign, "d").await.error(400)["param"], "data");
    let no_data = Form::new().text("file", "abc");
    assert_eq!(send_form(&server, &foreign, no_data).await.error(400)["param"], "data");
    let twice = Form::new().text("data", "a").text("data", "b");
    assert_eq!(send_form(&server, &foreign, twice).await.error(400)["param"], "data");
}

#[tokio::test]
async fn what_has_ended_takes_no_part_and_says_why() {
    let server = Server::start();
    let completed = create(&server, 3).await;
    let part = add(&server, &completed, "abc").await;
    complete(&server, &completed, json!({"part_ids": [part]})).await.ok();
    let cancelled = create(&server, 3).await;
    let cancelled_part = add(&server, &cancelled, "abc").await;
    assert_eq!(cancel(&server, &cancelled).await.ok()["status"], "cancelled");
    assert_eq!(cancel(&server, &cancelled).await.ok()["status"], "cancelled", "again is no error");
    assert_eq!(count(blobs(&server, "parts")), 0);
    let expired = create(&server, 3).await;
    let expired_part = add(&server, &expired, "abc").await;
    server.set_time("UPDATE uploads SET expires_at = 1 WHERE id = $1", &expired).await;

    for (id, part, word) in [
        (&completed, "part_none", "completed"),
        (&cancelled, &cancelled_part, "cancelled"),
        (&expired, &expired_part, "expired"),
    ] {
        let mut replies = vec![
            send(&server, id, "abc").await,
            complete(&server, id, json!({"part_ids": [part]})).await,
        ];
        if word != "cancelled" {
            replies.push(cancel(&server, id).await);
        }
        for reply in replies {
            let error = reply.error(400);
            assert_eq!(error["code"], "upload_not_pending");
            assert!(error["message"].as_str().is_some_and(|text| text.contains(word)), "{error}");
        }
    }
    // The bytes of the expired one go at the next look, here that of the next start.
    let server = server.kill_and_restart();
    let left = std::fs::read_dir(blobs(&server, "parts")).ok();
    if let Some(Ok(entry)) = left.and_then(|mut left| left.next()) {
        gone(&entry.path()).await;
    }
    assert_eq!(cancel(&server, &expired).await.error(400)["code"], "upload_not_pending");

    for reply in [
        send(&server, "upload_none", "abc").await,
        complete(&server, "upload_none", json!({"part_ids": ["part_none"]})).await,
        cancel(&server, "upload_none").await,
    ] {
        assert_eq!(reply.error(404)["code"], "upload_not_found");
    }
}

#[tokio::test]
async fn parts_survive_the_servers_death_and_leftovers_do_not() {
    let server = Server::start();
    let id = create(&server, 6).await;
    let abc = add(&server, &id, "abc").await;
    let stray = blobs(&server, "parts").join("part_stray");
    std::fs::write(&stray, "whose row was never written").expect("writes");
    let half = blobs(&server, "parts").join("part_half#1");
    std::fs::write(&half, "half a par").expect("writes");
    let server = server.kill_and_restart();
    assert!(!stray.exists() && !half.exists());
    let def = add(&server, &id, "def").await;
    let server = server.kill_and_restart();
    let body = json!({"part_ids": [abc, def]});
    let upload = complete(&server, &id, body.clone()).await.ok();
    let server = server.kill_and_restart();
    assert_eq!(complete(&server, &id, body).await.ok(), upload);
    let file_id = upload["file"]["id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("/v1/files/{file_id}/content")).await.text, "abcdef");
}

#[tokio::test]
async fn a_completion_that_dies_with_the_server_leaves_nothing_and_can_be_repeated() {
    let mut server = Server::start();
    let content = chat_lines(200_000);
    let id = create(&server, content.len()).await;
    let (first, second) = content.split_at(content.len() / 2);
    let part_ids = [add(&server, &id, first).await, add(&server, &id, second).await];
    let body = json!({"part_ids": part_ids, "md5": md5_of(&content)});
    for milliseconds in [5, 50, 150] {
        let url = format!("{}/v1/uploads/{id}/complete", server.base);
        let request = server.client.post(url).json(&body).send();
        let cut_off = tokio::spawn(request);
        tokio::time::sleep(std::time::Duration::from_millis(milliseconds)).await;
        server = server.kill_and_restart();
        let _answered_or_not = cut_off.await.expect("no panic");
        let files = server.get("/v1/files").await.ok();
        let rows = files["data"].as_array().map(Vec::len);
        assert_eq!(rows, Some(count(blobs(&server, "files"))), "a row for each blob");
    }
    let upload = complete(&server, &id, body).await.ok();
    let file_id = upload["file"]["id"].as_str().expect("an id");
    assert!(server.get(&format!("/v1/files/{file_id}/content")).await.text == content);
    assert_eq!((count(blobs(&server, "files")), count(blobs(&server, "parts"))), (1, 0));
}

#[tokio::test]
async fn completions_at_once_make_one_file_and_a_cancel_between_them_makes_none_or_one() {
    let server = Server::start();
    let content = chat_lines(20_000);
    let id = create(&server, content.len()).await;
    let body = json!({"part_ids": [add(&server, &id, &content).await]});
    let at_once = (0..6).map(|_| complete(&server, &id, body.clone()));
    let replies = futures_util::future::join_all(at_once).await;
    let ids: BTreeSet<String> =
        replies.iter().map(|reply| reply.ok()["file"]["id"].to_string()).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(count(blobs(&server, "files")), 1);

    for _ in 0..5 {
        let id = create(&server, content.len()).await;
        let body = json!({"part_ids": [add(&server, &id, &content).await]});
        let before = count(blobs(&server, "files"));
        let (completed, cancelled) =
            tokio::join!(complete(&server, &id, body), cancel(&server, &id));
        let (good, refused, made) = match completed.status.as_u16() {
            200 => (completed, cancelled, 1),
            _ => (cancelled, completed, 0),
        };
        good.ok();
        assert_eq!(refused.error(400)["code"], "upload_not_pending");
        assert_eq!(count(blobs(&server, "files")), before + made);
        assert_eq!(count(blobs(&server, "parts")), 0);
    }
}

#[tokio::test]
async fn an_upload_is_begun_as_curl_does_and_its_file_expires_as_asked() {
    let server = Server::start();
    let body = json!({"filename": "a.jsonl", "purpose": "user_data", "bytes": 3,
        "mime_type": "text/jsonl", "expires_after": {"anchor": "created_at", "seconds": 7200}});
    let request = server
        .client
        .post(format!("{}/v1/uploads", server.base))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(body.to_string());
    let upload = Reply::read(request.send().await.expect("a reply")).await.ok();
    let created_at = upload["created_at"].as_i64().expect("a time");
    assert_eq!(upload["expires_at"], created_at + 3600, "an hour to complete it");
    assert_eq!((&upload["file"], &upload["bytes"]), (&Value::Null, &json!(3)));
    let id = upload["id"].as_str().expect("an id");
    let part = add(&server, id, "abc").await;
    let file = &complete(&server, id, json!({"part_ids": [part]})).await.ok()["file"];
    let lifetime = file["expires_at"].as_i64().zip(file["created_at"].as_i64());
    assert_eq!(lifetime.map(|(expires, created)| expires - created), Some(7200));

    for (change, param) in [
        (json!({"purpose": "assistants"}), "purpose"),
        (json!({"bytes": 8_589_934_593_u64}), "bytes"),
        (json!({"filename": null}), "filename"),
        (
            json!({"expires_after": {"anchor": "created_at", "seconds": 10}}),
            "expires_after.seconds",
        ),
    ] {
        let mut body = body.clone();
        let object = body.as_object_mut().expect("an object");
        object.extend(change.as_object().expect("an object").clone());
        assert_eq!(server.post("/v1/uploads", body).await.error(400)["param"], param);
    }
}
