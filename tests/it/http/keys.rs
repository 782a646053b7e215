//! API keys: who is let in, and that keys stay secret.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::server::{LOG, Reply, Server, chat_lines, keys, make_key};

/// Asks for the list of models with this `Authorization` header.
async fn models(server: &Server, authorization: &str) -> Reply {
    let request = server.client.get(format!("{}/v1/models", server.base));
    let request = request.header("authorization", authorization);
    Reply::read(request.send().await.expect("a reply")).await
}

/// The lines of `hone keys list` without the heading, cut at the tabs.
fn listed(data_dir: &Path) -> Vec<Vec<String>> {
    let output = keys(data_dir, &["list"]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().skip(1).map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

#[tokio::test]
async fn as_soon_as_there_is_a_key_one_is_demanded_except_for_health_and_documents() {
    let server = Server::start();
    server.get("/v1/models").await.ok();
    let key = make_key(server.data_dir(), "team-a");
    for path in ["/v1/models", "/models", "/v1/files", "/v1/webhook_event_types"] {
        let reply = server.get(path).await;
        let error = reply.error(401);
        assert_eq!(error["code"], Value::Null, "no key at all");
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(reply.headers["www-authenticate"], "Bearer");
    }
    for wrong in [format!("Bearer {key}x"), "Bearer none".to_owned()] {
        assert_eq!(models(&server, &wrong).await.error(401)["code"], "invalid_api_key");
    }
    for none in [key.clone(), format!("Basic {key}"), "Bearer ".to_owned()] {
        assert_eq!(models(&server, &none).await.error(401)["code"], Value::Null, "{none}");
    }
    for right in [format!("Bearer {key}"), format!("bearer  {key}")] {
        models(&server, &right).await.ok();
    }
    for open in ["/healthz", "/readyz", "/openapi.json", "/docs/", "/docs/openapi.json"] {
        assert_eq!(server.get(open).await.status, 200, "{open}");
    }
    // Restarted, it still demands keys.
    let server = server.stop_and_restart();
    server.get("/v1/models").await.error(401);
    models(&server, &format!("Bearer {key}")).await.ok();
}

#[tokio::test]
async fn every_documented_route_demands_a_key_and_says_so() {
    let server = Server::start();
    make_key(server.data_dir(), "team-a");
    let document = server.get("/openapi.json").await.ok();
    let scheme = &document["components"]["securitySchemes"]["api_key"];
    assert_eq!((&scheme["type"], &scheme["scheme"]), (&json!("http"), &json!("bearer")));
    assert_eq!(document["security"], json!([{"api_key": []}]));
    let mut count = 0;
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("methods") {
            for status in ["401", "429"] {
                let content = &operation["responses"][status]["content"]["application/json"];
                let schema = &content["schema"]["$ref"];
                assert_eq!(schema, "#/components/schemas/ErrorBody", "{method} {path} {status}");
            }
            let method: Method = method.to_uppercase().parse().expect("a method");
            for path in [path.as_str(), path.strip_prefix("/v1").expect("versioned")] {
                server.send(method.clone(), path).await.error(401);
                count += 1;
            }
        }
    }
    assert!(count > 50, "the document has routes: {count}");
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once_while_the_server_runs() {
    let server = Server::start();
    let (kept, revoked) =
        (make_key(server.data_dir(), "team-a"), make_key(server.data_dir(), "team-a"));
    models(&server, &format!("Bearer {revoked}")).await.ok();
    let id = listed(server.data_dir())[1][0].clone();
    assert!(keys(server.data_dir(), &["revoke", &id]).status.success());
    let error = models(&server, &format!("Bearer {revoked}")).await.error(401);
    assert_eq!(error["code"], "invalid_api_key");
    models(&server, &format!("Bearer {kept}")).await.ok();
    // With every key revoked, the door stays shut.
    let id = listed(server.data_dir())[0][0].clone();
    assert!(keys(server.data_dir(), &["revoke", &id]).status.success());
    models(&server, &format!("Bearer {kept}")).await.error(401);
    models(&server, "Bearer anything").await.error(401);
    server.get("/v1/models").await.error(401);
}

#[tokio::test]
async fn a_stream_of_events_ends_when_its_key_is_revoked() {
    let mut server = Server::start();
    let key = make_key(server.data_dir(), "team-a");
    server.act_with(&key);
    let job = server.create_job(&chat_lines(12), json!({"n_epochs": 50, "batch_size": 1})).await;
    server.under_way(&job).await;
    let url = format!("{}/v1/fine_tuning/jobs/{job}/events?stream=true", server.base);
    let stream = server.client.get(url).send().await.expect("a reply");
    assert_eq!(stream.status(), 200);
    let id = listed(server.data_dir())[0][0].clone();
    assert!(keys(server.data_dir(), &["revoke", &id]).status.success());
    let said = stream.text().await.expect("it ends");
    let last = said.trim_end().lines().last().expect("something was said");
    let last: Value = serde_json::from_str(last.trim_start_matches("data: ")).expect("JSON");
    assert_eq!(last["error"]["code"], "invalid_api_key", "{last}");
}

#[tokio::test]
async fn keys_are_made_and_revoked_while_the_server_writes() {
    let mut server = Server::start();
    let first = make_key(server.data_dir(), "team-a");
    server.act_with(&first);
    let id = server.create_job(&chat_lines(12), json!({"n_epochs": 40, "batch_size": 1})).await;
    server.under_way(&id).await;
    for number in 0..5 {
        let key = make_key(server.data_dir(), "team-a");
        models(&server, &format!("Bearer {key}")).await.ok();
        let key_id = listed(server.data_dir())[number + 1][0].clone();
        assert!(keys(server.data_dir(), &["revoke", &key_id]).status.success());
    }
    let job = server.ended(&id, "succeeded").await;
    assert_eq!(job["trained_steps"], 480);
}

#[tokio::test]
async fn a_key_is_in_no_file_of_the_data_folder_and_in_no_log() {
    let mut server = Server::start_with(&[("RUST_LOG", "trace")]);
    let key = make_key(server.data_dir(), "team-a");
    let wrong = key.replace("sk-hone-", "sk-hone-0");
    server.act_with(&key);
    let id = server.create_job(&chat_lines(12), json!({"n_epochs": 1})).await;
    server.ended(&id, "succeeded").await;
    models(&server, &format!("Bearer {wrong}")).await.error(401);
    let folder = server.data_dir().to_owned();
    // Searched with the write-ahead log in place, and again when it is folded into the database.
    for is_stopped in [false, true] {
        if is_stopped {
            assert!(server.stop().success());
        }
        let mut searched = Vec::new();
        let mut folders = vec![folder.clone()];
        while let Some(inside) = folders.pop() {
            for entry in std::fs::read_dir(inside).expect("reads") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let bytes = std::fs::read(&path).expect("reads");
                for secret in [&key["sk-hone-".len()..], &wrong["sk-hone-0".len()..]] {
                    let found = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
                    assert!(!found, "{} holds a key", path.display());
                }
                searched.push(path.file_name().expect("a name").to_owned());
            }
        }
        for name in [LOG, hone::store::sqlite::DATABASE_FILE] {
            assert!(searched.iter().any(|one| one == name), "{name} was searched");
        }
    }
    let log = std::fs::read_to_string(folder.join(LOG)).expect("reads");
    assert!(log.contains("/v1/models"), "requests are logged");
}

#[tokio::test]
async fn a_server_without_keys_says_so_when_it_starts() {
    let server = Server::start_with(&[("RUST_LOG", "info")]);
    let log = std::fs::read_to_string(server.data_dir().join(LOG)).expect("reads");
    assert!(log.contains("any key is accepted"), "{log}");
    assert!(log.contains("hone keys create"), "{log}");
    make_key(server.data_dir(), "team-a");
    let server = server.stop_and_restart();
    let log = std::fs::read_to_string(server.data_dir().join(LOG)).expect("reads");
    assert!(!log.contains("any key is accepted"), "{log}");
}

/// `hone serve` at an address on every network of the machine.
fn serve_everywhere(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hone"));
    command.args(["serve", "--listen", "0.0.0.0:0", "--data-dir"]).arg(data_dir);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn beyond_this_machine_a_server_without_keys_refuses_to_start_and_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = serve_everywhere(folder.path()).output().expect("it runs");
    assert!(!output.status.success() && output.stdout.is_empty());
    let message = String::from_utf8(output.stderr).expect("UTF-8");
    let advice = format!("hone keys create --project NAME --data-dir {}", folder.path().display());
    assert!(message.contains(&advice) && message.contains("127.0.0.1"), "{message}");

    make_key(folder.path(), "team-a");
    let mut server = serve_everywhere(folder.path()).spawn().expect("it starts");
    let mut line = String::new();
    let stdout = server.stdout.take().expect("a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
    server.kill().expect("killed");
    server.wait().expect("ended");
    assert!(line.contains("hone listens on http://0.0.0.0:"), "{line}");
}

#[test]
fn a_key_is_printed_once_and_listed_without_its_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("new");
    let output = keys(&data_dir, &["list"]);
    assert!(!output.status.success() && !data_dir.exists(), "nothing is made by mistake");
    let output = keys(&data_dir, &["create", "--project", "team-a", "--name", "Ada's laptop"]);
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    let key = printed.strip_suffix('\n').expect("the key alone, for scripts");
    assert!(key.starts_with("sk-hone-") && key.len() == "sk-hone-".len() + 64, "{key}");
    assert!(!String::from_utf8(output.stderr).expect("UTF-8").contains(key));

    let rows = listed(&data_dir);
    let [id, project, name, last_four, created, revoked] = rows[0].as_slice() else {
        panic!("six columns: {rows:?}");
    };
    assert!(id.starts_with("key_"), "{id}");
    assert_eq!((project.as_str(), name.as_str()), ("team-a", "Ada's laptop"));
    assert!(key.ends_with(last_four.as_str()) && last_four.len() == 4);
    assert!(created.starts_with("20") && created.ends_with('Z'), "{created}");
    assert_eq!(revoked, "-");
    assert!(keys(&data_dir, &["revoke", id]).status.success());
    let revoked = listed(&data_dir)[0][5].clone();
    assert!(revoked.ends_with('Z'), "{revoked}");
    assert!(keys(&data_dir, &["revoke", id]).status.success(), "once more is no mistake");
    assert_eq!(listed(&data_dir)[0][5], revoked, "and changes nothing");
    for wrong in [
        ["revoke", "key_none", "", ""],
        ["create", "--project", "two words", ""],
        ["create", "--project", "a", "--name"],
    ] {
        let output = keys(&data_dir, &wrong);
        assert!(!output.status.success(), "{wrong:?}");
    }
    assert_eq!(listed(&data_dir).len(), 1);
}
