//! `/v1/files`: what is uploaded is kept, byte for byte, and can be listed, read and deleted.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::server::{Reply, Server, TINY, chat_lines, gone, peak_memory};

fn part(content: &str) -> Part {
    Part::bytes(content.as_bytes().to_vec()).file_name("folder/train.jsonl")
}

#[tokio::test]
async fn an_upload_comes_back_byte_for_byte_whatever_the_order_of_the_fields() {
    let server = Server::start();
    let content = "\u{feff}{\"not\": \"checked for this purpose\"}\r\n\0 end";
    for form in [
        Form::new().text("purpose", "user_data").part("file", part(content)),
        Form::new().part("file", part(content)).text("purpose", "user_data"),
    ] {
        let file = server.form(form).await.ok();
        assert_eq!(file["object"], "file");
        assert_eq!(file["status"], "processed");
        assert_eq!(file["purpose"], "user_data");
        assert_eq!(file["filename"], "train.jsonl");
        assert_eq!(file["bytes"], content.len());
        assert!(file.get("expires_at").is_none(), "left out when there is no expiry");
        let id = file["id"].as_str().expect("an id");
        assert!(id.starts_with("file-"));
        assert_eq!(server.get(&format!("/v1/files/{id}")).await.ok(), file);
        let reply = server.get(&format!("/v1/files/{id}/content")).await;
        assert_eq!((reply.status.as_u16(), reply.text.as_str()), (200, content));
        assert_eq!(reply.headers["content-length"], content.len().to_string());
        assert_eq!(reply.headers["content-type"], "application/octet-stream");
    }
}

#[tokio::test]
async fn a_stream_without_length_and_a_range_of_bytes_work() {
    let server = Server::start();
    let chunks = ["abc", "defg", "hij"].map(|text| Ok::<_, std::io::Error>(text.as_bytes()));
    let stream = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    let form = Form::new().part("file", Part::stream(stream)).text("purpose", "evals");
    let file = server.form(form).await.ok();
    assert_eq!(file["filename"], "upload", "a file without a name is called upload");
    let url = format!("{}/files/{}/content", server.base, file["id"].as_str().expect("an id"));
    let request = server.client.get(&url).header("range", "bytes=2-4");
    let reply = Reply::read(request.send().await.expect("a reply")).await;
    assert_eq!((reply.status.as_u16(), reply.text.as_str()), (206, "cde"));
    assert_eq!(reply.headers["content-range"], "bytes 2-4/10");
    for request in [server.client.get(&url).header("if-range", "\"v1\""), server.client.head(&url)]
    {
        let reply = request.header("range", "bytes=2-4").send().await.expect("a reply");
        assert_eq!(
            (reply.status().as_u16(), &reply.headers()["content-length"]),
            (200, &"10".parse().expect("a header"))
        );
    }
    let request = server.client.get(&url).header("range", "bytes=10-");
    let error = Reply::read(request.send().await.expect("a reply")).await.error(416);
    assert_eq!(error["code"], "invalid_range");
}

#[tokio::test]
async fn files_are_listed_in_pages_that_meet_and_end() {
    let server = Server::start();
    let mut uploaded = Vec::new();
    for number in 0..5 {
        let purpose = if number == 2 { "user_data" } else { "fine-tune" };
        let form = Form::new().text("purpose", purpose).part("file", part("x"));
        let file = server.form(form).await.ok();
        uploaded.push(file["id"].as_str().expect("an id").to_owned());
    }
    let empty = server.get("/v1/files?purpose=batch").await.ok();
    assert_eq!(
        empty,
        json!({"object": "list", "data": [], "first_id": null, "last_id": null, "has_more": false})
    );
    for order in ["asc", "desc"] {
        let mut seen = Vec::new();
        let mut after = String::new();
        loop {
            let path = format!("/v1/files?order={order}&limit=2&after={after}");
            let page = server.get(&path).await.ok();
            let data = page["data"].as_array().expect("a list");
            seen.extend(data.iter().map(|file| file["id"].as_str().expect("an id").to_owned()));
            assert_eq!(page["last_id"], data[data.len() - 1]["id"]);
            assert_eq!(page["first_id"], data[0]["id"]);
            after = page["last_id"].as_str().expect("an id").to_owned();
            if page["has_more"] == false {
                break;
            }
        }
        if order == "desc" {
            seen.reverse();
        }
        assert_eq!(seen, uploaded);
    }
    let one = server.get("/v1/files?purpose=user_data").await.ok();
    assert_eq!(one["data"].as_array().map(Vec::len), Some(1));
    // openai-node sends null as nothing: that is no limit and no cursor.
    assert_eq!(server.get("/v1/files?purpose=user_data&limit=&after=").await.ok(), one);
    for (query, param) in [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("after=no", "after"),
        ("purpose=fine_tune", "purpose"),
    ] {
        let error = server.get(&format!("/v1/files?{query}")).await.error(400);
        assert_eq!(error["param"], param);
    }
}

#[tokio::test]
async fn a_deleted_file_is_gone_and_a_used_one_stays() {
    let server = Server::start();
    let id = server.upload(&chat_lines(12)).await;
    let deleted = server.delete(&format!("/v1/files/{id}")).await.ok();
    assert_eq!(deleted, json!({"id": id, "object": "file", "deleted": true}));
    for path in [format!("/v1/files/{id}"), format!("/v1/files/{id}/content")] {
        let error = server.get(&path).await.error(404);
        assert_eq!((&error["param"], &error["code"]), (&json!("id"), &json!(null)));
    }
    server.delete(&format!("/v1/files/{id}")).await.error(404);

    let job = server.create_job(&chat_lines(12), json!({"n_epochs": 50, "batch_size": 1})).await;
    let used = server.job(&job).await["training_file"].as_str().expect("an id").to_owned();
    let error = server.delete(&format!("/v1/files/{used}")).await.error(400);
    assert!(error["message"].as_str().expect("a text").contains(&job), "{error}");
    assert_eq!(server.get(&format!("/v1/files/{used}")).await.status, 200);
}

#[tokio::test]
async fn a_bad_form_is_refused_with_the_field_at_fault() {
    let server = Server::start();
    let file = || part("x");
    for (form, param) in [
        (Form::new().part("file", file()), "purpose"),
        (Form::new().text("purpose", "fine-tune"), "file"),
        (Form::new().text("purpose", "vision").part("file", file()), "purpose"),
        (
            Form::new()
                .text("purpose", "evals")
                .text("expires_after[anchor]", "created_at")
                .text("expires_after[seconds]", "5")
                .part("file", file()),
            "expires_after[seconds]",
        ),
        (
            Form::new()
                .text("purpose", "evals")
                .text("expires_after[anchor]", "yesterday")
                .text("expires_after[seconds]", "3600")
                .part("file", file()),
            "expires_after[anchor]",
        ),
        (
            Form::new()
                .text("purpose", "evals")
                .text("expires_after[seconds]", "3600")
                .part("file", file()),
            "expires_after[anchor]",
        ),
    ] {
        assert_eq!(server.form(form).await.error(400)["param"], param);
    }
    let expiring = Form::new()
        .text("purpose", "evals")
        .text("expires_after[anchor]", "created_at")
        .text("expires_after[seconds]", "3600")
        .part("file", file());
    let kept = server.form(expiring).await.ok();
    let created_at = kept["created_at"].as_i64().expect("a time");
    assert_eq!(kept["expires_at"], created_at + 3600);

    server.post("/v1/files", json!({"purpose": "fine-tune"})).await.error(415);
    let broken = server
        .client
        .post(format!("{}/v1/files", server.base))
        .header("content-type", "multipart/form-data; boundary=b")
        .body("--b\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\nno end");
    Reply::read(broken.send().await.expect("a reply")).await.error(400);
    let list = server.get("/v1/files").await.ok();
    assert_eq!(list["data"].as_array().map(Vec::len), Some(1), "nothing of the refused is kept");
    server.send(Method::PUT, "/v1/files").await.error(405);
}

/// Uploads one byte under a name in quotes, exactly as it is given.
async fn upload_named(server: &Server, name: &[u8]) -> Reply {
    upload_with(server, &[b"filename=\"", name, b"\""].concat()).await
}

/// Uploads one byte with these parameters in its header.
async fn upload_with(server: &Server, parameters: &[u8]) -> Reply {
    let mut body =
        b"--b\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nevals\r\n--b\r\n\
        content-disposition: form-data; name=\"file\"; "
            .to_vec();
    body.extend_from_slice(parameters);
    body.extend_from_slice(b"\r\n\r\nx\r\n--b--\r\n");
    let request = server
        .client
        .post(format!("{}/v1/files", server.base))
        .header("content-type", "multipart/form-data; boundary=b")
        .body(body);
    Reply::read(request.send().await.expect("a reply")).await
}

#[tokio::test]
async fn a_hostile_name_is_only_ever_shown() {
    let server = Server::start();
    for (name, shown) in [
        ("../../etc/passwd", "passwd"),
        ("..", "upload"),
        (r"..\..\boot.ini", "boot.ini"),
        ("%2e%2e%2fx", "%2e%2e%2fx"),
        ("日本語 ä; filename=y", "日本語 ä; filename=y"),
    ] {
        let file = upload_named(&server, name.as_bytes()).await.ok();
        assert_eq!(file["filename"], shown);
        let id = file["id"].as_str().expect("an id");
        let reply = server.get(&format!("/v1/files/{id}/content")).await;
        assert_eq!(reply.text, "x");
        let disposition = reply.headers["content-disposition"].to_str().expect("ASCII");
        assert_eq!(disposition.matches('"').count(), 2, "{disposition}");
        assert_eq!(disposition.matches(';').count(), 2, "{disposition}");
        assert_eq!(reply.headers["x-content-type-options"], "nosniff");
    }
    // What belongs in no header is refused, or left out of the name.
    for name in [&b"a\r\nset-cookie: b"[..], b"a\0b", b"a\tb", b"\xff\xfe"] {
        let reply = upload_named(&server, name).await;
        if reply.status == 200 {
            let shown = reply.ok()["filename"].as_str().expect("a text").to_owned();
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
        } else {
            reply.error(400);
        }
    }
}

#[tokio::test]
async fn a_file_is_called_what_its_client_calls_it_in_every_spelling() {
    let server = Server::start();
    for (parameters, shown) in [
        (
            "filename=\"=?utf-8?B?6K6t57uDLmpzb25s?=\"; filename*=utf-8''%E8%AE%AD%E7%BB%83.jsonl",
            "训练.jsonl",
        ),
        ("filename*=utf-8''%E8%AE%AD%E7%BB%83.jsonl", "训练.jsonl"),
        ("filename*=utf-8''folder%2Fa.jsonl; filename=\"b.jsonl\"", "a.jsonl"),
        ("filename=\"=?utf-8?B?w7/Dvw==?=\"", "ÿÿ"),
        ("filename=\"=?utf-8?Q?folder/=E8=AE=AD.jsonl?=\"", "训.jsonl"),
        ("filename=\"训练.jsonl\"", "训练.jsonl"),
    ] {
        let file = upload_with(&server, parameters.as_bytes()).await.ok();
        assert_eq!(file["filename"], shown, "{parameters}");
    }
    let error = upload_named(&server, "x".repeat(256).as_bytes()).await.error(400);
    assert_eq!(error["param"], "file");
    assert!(error["message"].as_str().expect("a text").contains("256 characters"), "{error}");
    let list = server.get("/v1/files").await.ok();
    assert_eq!(list["data"].as_array().map(Vec::len), Some(6), "nothing of the refused is kept");
}

const EXPIRE: &str = "UPDATE files SET expires_at = 1 WHERE id = $1";

async fn upload_expiring(server: &Server, content: &str) -> String {
    let form = Form::new()
        .text("purpose", "fine-tune")
        .text("expires_after[anchor]", "created_at")
        .text("expires_after[seconds]", "3600")
        .part("file", part(content));
    server.form(form).await.ok()["id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn an_expired_file_vanishes_with_its_bytes_but_never_under_a_job() {
    let server = Server::start();
    let unused = upload_expiring(&server, &chat_lines(12)).await;
    let used = upload_expiring(&server, &chat_lines(12)).await;
    let blobs = server.data_dir().join("blobs/objects/files");
    assert!(blobs.join(&unused).is_file() && blobs.join(&used).is_file());
    let long = json!({"n_epochs": 50, "batch_size": 1});
    let body = json!({"model": TINY, "training_file": used, "hyperparameters": long});
    let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
    let job = job["id"].as_str().expect("an id");
    server.under_way(job).await;
    server.set_time(EXPIRE, &unused).await;
    server.set_time(EXPIRE, &used).await;

    for path in [format!("/v1/files/{unused}"), format!("/v1/files/{unused}/content")] {
        server.get(&path).await.error(404);
    }
    server.delete(&format!("/v1/files/{unused}")).await.error(404);
    let list = server.get("/v1/files?purpose=fine-tune").await.ok();
    assert_eq!((&list["data"][0]["id"], &list["data"][1]), (&json!(used), &json!(null)));
    let late = json!({"model": TINY, "training_file": unused});
    let error = server.post("/v1/fine_tuning/jobs", late).await.error(400);
    assert_eq!(error["param"], "training_file");

    // The next start removes the bytes; those of the job stay until it has ended.
    let server = server.kill_and_restart();
    gone(&blobs.join(&unused)).await;
    assert_eq!(server.get(&format!("/v1/files/{used}/content")).await.status, 200);
    server.ended(job, "succeeded").await;
    server.get(&format!("/v1/files/{used}")).await.error(404);
    assert!(blobs.join(&used).is_file());
    // A job that is cancelled while it waits makes the server look for what can go.
    let running = server.create_job(&chat_lines(12), long).await;
    let waiting = server.create_job(&chat_lines(12), json!({})).await;
    server.send(Method::POST, &format!("/v1/fine_tuning/jobs/{waiting}/cancel")).await.ok();
    gone(&blobs.join(&used)).await;
    server.send(Method::POST, &format!("/v1/fine_tuning/jobs/{running}/cancel")).await.ok();
}

/// Chat examples of about a kilobyte each, as a stream of `mebibytes`.
fn many_examples(mebibytes: usize) -> (reqwest::Body, usize) {
    let line = json!({"messages": [
        {"role": "user", "content": "Tell me of the sea. ".repeat(20)},
        {"role": "assistant", "content": "The sea is deep. ".repeat(30)},
    ]});
    let line = format!("{line}\n");
    let chunk = bytes::Bytes::from(line.repeat((1 << 20) / line.len()));
    let length = chunk.len() * mebibytes;
    let chunks = std::iter::repeat_n(chunk, mebibytes).map(Ok::<_, std::io::Error>);
    (reqwest::Body::wrap_stream(futures_util::stream::iter(chunks)), length)
}

#[tokio::test]
async fn an_upload_of_512_mib_is_checked_in_constant_memory() {
    let server = Server::start();
    let (body, length) = many_examples(512);
    let form = Form::new().text("purpose", "fine-tune").part("file", Part::stream(body));
    let file = server.form(form).await.ok();
    assert_eq!(file["bytes"], length);
    let peak = peak_memory(server.pid());
    assert!(peak < 150, "the server used {peak} MiB");
}

#[tokio::test]
async fn a_file_over_the_limit_is_refused_with_a_clear_413() {
    let server = Server::start();
    let (body, _) = many_examples(600);
    let form = Form::new().part("file", Part::stream(body)).text("purpose", "fine-tune");
    let error = server.form(form).await.error(413);
    assert_eq!(error["code"], "file_too_large");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("512 MiB")), "{error}");
    assert_eq!(server.get("/v1/files").await.ok()["data"], json!([]));
    assert_eq!(blobs(&server).len(), 0, "the bytes are gone when the client hears of it");
}

#[tokio::test]
async fn slow_uploads_do_not_hold_up_another_however_many_they_are() {
    /// More than the threads on which files are written.
    const SLOW: usize = 520;
    let server = Server::start();
    let host = server.base.trim_start_matches("http://");
    let begin = "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\
        Content-Type: multipart/form-data; boundary=xx\r\n\r\n--xx\r\n\
        Content-Disposition: form-data; name=\"file\"; filename=\"slow\"\r\n\r\nsome";
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        let mut stream = TcpStream::connect(host).await.expect("connects");
        stream.write_all(begin.as_bytes()).await.expect("sends");
        slow.push(stream);
    }
    let started = Instant::now();
    while blobs(&server).len() < SLOW {
        assert!(started.elapsed() < Duration::from_secs(30), "{} began", blobs(&server).len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (body, length) = many_examples(8);
    let form = Form::new().text("purpose", "fine-tune").part("file", Part::stream(body));
    let upload = tokio::time::timeout(Duration::from_secs(30), server.form(form)).await;
    assert_eq!(upload.expect("it is not held up").ok()["bytes"], length);
}

/// The status of the reply to a request of which everything is sent before anything is read.
async fn status_after_sending(server: &Server, head: &str, pieces: &[(&[u8], usize)]) -> u16 {
    let host = server.base.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).await.expect("connects");
    let head = format!("{head}\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sends");
    for (piece, count) in pieces {
        let size = format!("{:x}\r\n", piece.len());
        let chunk = [size.as_bytes(), piece, b"\r\n"].concat();
        for _ in 0..*count {
            stream.write_all(&chunk).await.expect("the connection holds");
        }
    }
    stream.write_all(b"0\r\n\r\n").await.expect("the connection holds");
    let mut reply = vec![0; 12];
    stream.read_exact(&mut reply).await.expect("a reply");
    let status = str::from_utf8(&reply).expect("text").strip_prefix("HTTP/1.1 ").expect("a status");
    status.parse().expect("a number")
}

/// Node looks for a reply only once it has sent everything.
#[tokio::test]
async fn whoever_is_refused_hears_of_it_after_sending_a_large_body() {
    let server = Server::start();
    let form = "Content-Type: multipart/form-data; boundary=xx";
    let megabyte = vec![b'x'; 1 << 20];
    let field = b"--xx\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\n".as_slice();
    for (head, begin, status) in [
        ("POST /v1/nothing HTTP/1.1".to_owned(), b"a".as_slice(), 404),
        (format!("POST /v1/uploads/upload_none/parts HTTP/1.1\r\n{form}"), field, 404),
        (format!("POST /v1/files HTTP/1.1\r\n{form}"), field, 400),
        ("POST /v1/files HTTP/1.1".to_owned(), b"a", 415),
        ("PUT /v1/files HTTP/1.1".to_owned(), b"a", 405),
        ("POST /v1/fine_tuning/jobs HTTP/1.1".to_owned(), b"{", 413),
    ] {
        let pieces = [(begin, 1), (megabyte.as_slice(), 40)];
        assert_eq!(status_after_sending(&server, &head, &pieces).await, status, "{head}");
    }
}

#[tokio::test]
async fn a_form_without_end_before_its_file_is_refused_in_constant_memory() {
    let server = Server::start();
    let head = "POST /v1/files HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=xx";
    let megabyte = vec![b'x'; 1 << 20];
    let fields: Vec<Vec<u8>> = (0..100)
        .map(|number| {
            format!(
                "--xx\r\nContent-Disposition: form-data; name=\"f{number}\"\r\n\r\n{}\r\n",
                "y".repeat(4000)
            )
            .into_bytes()
        })
        .collect();
    let mut fields: Vec<(&[u8], usize)> =
        fields.iter().map(|field| (field.as_slice(), 1)).collect();
    // Otherwise good: too many fields are all that is wrong.
    let end =
        b"--xx\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--xx\r\n\
        Content-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\na\r\n--xx--\r\n";
    fields.push((end, 1));
    assert_eq!(status_after_sending(&server, head, &[fields[0], (end, 1)]).await, 200);
    for pieces in [
        // Before the first field, and the head of one that never ends.
        &[(megabyte.as_slice(), 200)][..],
        &[(b"--xx\r\nX-Long: ".as_slice(), 1), (megabyte.as_slice(), 200)],
        &fields,
    ] {
        assert_eq!(status_after_sending(&server, head, pieces).await, 400);
    }
    let peak = peak_memory(server.pid());
    assert!(peak < 100, "the server used {peak} MiB");
}

/// What lies where the bytes of files lie, whole or not.
fn blobs(server: &Server) -> Vec<PathBuf> {
    let folder = server.data_dir().join("blobs/objects/files");
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

#[tokio::test]
async fn an_upload_that_breaks_off_or_is_refused_leaves_nothing() {
    let server = Server::start();
    // Refused for its purpose, which comes behind the bytes.
    let form = Form::new().part("file", part(&chat_lines(12))).text("purpose", "none");
    server.form(form).await.error(400);
    for path in blobs(&server) {
        gone(&path).await;
    }
    // Broken off after bytes enough to be on the disk.
    let (sent, seen) = tokio::sync::mpsc::channel::<Result<bytes::Bytes, std::io::Error>>(1);
    let body = reqwest::Body::wrap_stream(futures_util::stream::unfold(seen, async |mut seen| {
        Some((seen.recv().await?, seen))
    }));
    let form = Form::new().text("purpose", "fine-tune").part("file", Part::stream(body));
    let (url, client) = (format!("{}/files", server.base), server.client.clone());
    let upload = tokio::spawn(client.post(url).multipart(form).send());
    for _ in 0..4 {
        sent.send(Ok(bytes::Bytes::from(vec![b' '; 1 << 20]))).await.expect("it is read");
    }
    let started = Instant::now();
    let staged = loop {
        if let Some(path) = blobs(&server).pop() {
            break path;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "nothing is staged");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    upload.abort();
    gone(&staged).await;
    assert_eq!(server.get("/v1/files").await.ok()["data"], json!([]));
    assert_eq!(blobs(&server).len(), 0);
}
