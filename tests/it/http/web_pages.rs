//! A server without keys and web pages: it is driven by programs of this machine, and by no page of
//! another origin, whatever name that page has pointed at this machine.

use reqwest::multipart::{Form, Part};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::server::{Reply, Server, TINY, chat_lines, make_key};

const EVIL: &str = "https://evil.example.com";

/// What a request from a foreign page has, or one for a foreign name of this machine.
const FOREIGN: [&[(&str, &str)]; 7] = [
    &[("host", "rebound.example.com")],
    &[("host", "rebound.example.com:8080")],
    // Its own page, as far as its browser knows.
    &[("host", "rebound.example.com"), ("origin", "http://rebound.example.com")],
    &[("origin", EVIL)],
    &[("origin", "null")],
    &[("origin", "http://localhost:3000"), ("sec-fetch-site", "same-site")],
    &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")],
];

fn request(
    server: &Server,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> RequestBuilder {
    let mut request = server.client.request(method, format!("{}{path}", server.base));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request
}

async fn send(request: RequestBuilder) -> Reply {
    Reply::read(request.send().await.expect("a reply")).await
}

fn chat() -> Value {
    json!({"model": TINY, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})
}

fn upload() -> Form {
    let part = Part::text(chat_lines(10)).file_name("train.jsonl");
    Form::new().text("purpose", "fine-tune").part("file", part)
}

#[tokio::test]
async fn no_foreign_page_and_no_foreign_name_reaches_a_server_without_keys() {
    let server = Server::start();
    let document = server.get("/openapi.json").await.ok();
    let mut paths: Vec<(String, String)> = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in item.as_object().expect("methods").keys() {
            paths.push((method.to_uppercase(), path.replace(['{', '}'], "")));
        }
    }
    for path in ["/metrics", "/openapi.json", "/docs/", "/no-such-route", "/v1/files?limit=1"] {
        paths.push(("GET".to_owned(), path.to_owned()));
    }
    assert!(paths.len() > 40, "{paths:#?}");
    for (method, path) in &paths {
        let method: Method = method.parse().expect("a method");
        for headers in FOREIGN {
            let mut asked = request(&server, method.clone(), path, headers);
            if method == Method::POST {
                // What a page may send to any server without asking it.
                asked = asked.header("content-type", "text/plain").body(chat().to_string());
            }
            let error = send(asked).await.error(403);
            let message = error["message"].as_str().expect("a text");
            assert!(message.contains("hone keys create"), "{message}");
            assert_eq!(error["code"], "permission_denied", "{method} {path} {headers:?}");
        }
    }
    for headers in FOREIGN {
        let asked = request(&server, Method::POST, "/v1/files", headers).multipart(upload());
        send(asked).await.error(403);
    }
    // Nothing of it has happened.
    assert_eq!(server.get("/v1/files").await.ok()["data"], json!([]));
    assert_eq!(server.get("/v1/webhook_endpoints").await.ok()["data"], json!([]));
}

#[tokio::test]
async fn programs_of_this_machine_and_the_servers_own_page_work_without_keys() {
    let server = Server::start();
    let own = server.base.as_str();
    let host = own.strip_prefix("http://").expect("a URL");
    let port = host.rsplit(':').next().expect("a port");
    let post =
        |headers: &[(&str, &str)]| request(&server, Method::POST, "/v1/chat/completions", headers);
    // curl -d, whose content type is that of a form.
    let form = [("content-type", "application/x-www-form-urlencoded")];
    send(post(&form).body(chat().to_string())).await.ok();
    send(post(&[]).body(chat().to_string())).await.ok();
    // Other names of this machine, and the port of `ssh -L`.
    for name in
        [format!("localhost:{port}"), "localhost:9999".into(), "127.0.0.1".into(), "[::1]:1".into()]
    {
        send(post(&[("host", &name)]).json(&chat())).await.ok();
        let origin = format!("http://{name}");
        let page =
            [("host", name.as_str()), ("origin", &origin), ("sec-fetch-site", "same-origin")];
        send(post(&page).json(&chat())).await.ok();
    }
    // The page at /docs.
    let page = [("origin", own), ("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")];
    send(post(&page).json(&chat())).await.ok();
    let charset = post(&page).header("content-type", "application/json; charset=utf-8");
    send(charset.body(chat().to_string())).await.ok();
    let file =
        send(request(&server, Method::POST, "/v1/files", &page).multipart(upload())).await.ok();
    let path = format!("/v1/files/{}", file["id"].as_str().expect("an id"));
    send(request(&server, Method::GET, &path, &page)).await.ok();
    // A browser opens an address that was typed.
    let typed = [
        ("sec-fetch-site", "none"),
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-dest", "document"),
    ];
    assert_eq!(send(request(&server, Method::GET, "/docs/", &typed)).await.status, 200);

    // A browser says of a body what it is, wherever one is read.
    for headers in [&page[..], &[("sec-fetch-mode", "cors")]] {
        for kind in
            ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"]
        {
            let asked = post(headers).header("content-type", kind).body(chat().to_string());
            let error = send(asked).await.error(415);
            assert!(
                error["message"].as_str().is_some_and(|text| text.contains("application/json"))
            );
        }
    }
    send(request(&server, Method::DELETE, &path, &page)).await.ok();
}

#[tokio::test]
async fn pages_of_listed_origins_work_without_keys_and_every_page_with_one() {
    let listed = "https://dashboard.example.com";
    let mut server = Server::start_with(&[("HONE_CORS_ORIGINS", listed)]);
    let models = |server: &Server, headers: &[(&str, &str)]| {
        request(server, Method::GET, "/v1/models", headers)
    };
    let page = [("origin", listed), ("sec-fetch-site", "cross-site")];
    let reply = send(models(&server, &page)).await;
    reply.ok();
    assert_eq!(reply.headers["access-control-allow-origin"], listed);
    // Why it is refused is for the listed page to read as well.
    let plain =
        request(&server, Method::POST, "/v1/chat/completions", &page).body(chat().to_string());
    let refused = send(plain).await;
    refused.error(415);
    assert_eq!(refused.headers["access-control-allow-origin"], listed);
    send(models(&server, &[("origin", EVIL)])).await.error(403);

    let key = make_key(server.data_dir(), "team-a");
    for headers in FOREIGN {
        send(models(&server, headers)).await.error(401);
    }
    // Behind a proxy the server has the proxy's name.
    server.act_with(&key);
    for headers in FOREIGN {
        send(models(&server, headers)).await.ok();
    }
    let plain =
        request(&server, Method::POST, "/v1/chat/completions", FOREIGN[3]).body(chat().to_string());
    send(plain).await.ok();
}
