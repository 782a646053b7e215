//! Web pages of other origins: none may use the API, but those that are listed.

use std::process::Command;

use reqwest::Method;

use crate::support::server::{Reply, Server, make_key};

const ALLOW: &str = "access-control-allow-origin";

/// What a browser asks before a request with a key.
async fn preflight(server: &Server, path: &str, origin: &str) -> Reply {
    let request = server.client.request(Method::OPTIONS, format!("{}{path}", server.base));
    let request = request
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,x-stainless-os");
    Reply::read(request.send().await.expect("a reply")).await
}

async fn get_from(server: &Server, path: &str, origin: &str) -> Reply {
    let request = server.client.get(format!("{}{path}", server.base)).header("origin", origin);
    Reply::read(request.send().await.expect("a reply")).await
}

#[tokio::test]
async fn no_page_of_another_origin_may_use_the_api_unasked() {
    let server = Server::start();
    let asked = preflight(&server, "/v1/files", "https://dashboard.example.com").await;
    assert!(!asked.headers.contains_key(ALLOW));
    let reply = get_from(&server, "/v1/models", "https://dashboard.example.com").await;
    // Without keys it is not answered at all: `http::web_pages`.
    reply.error(403);
    assert!(!reply.headers.contains_key(ALLOW));
    make_key(server.data_dir(), "team-a");
    let reply = get_from(&server, "/v1/models", "https://dashboard.example.com").await;
    reply.error(401);
    assert!(!reply.headers.contains_key(ALLOW));
}

#[tokio::test]
async fn listed_origins_may_use_the_api_and_are_asked_for_a_key_after_the_preflight() {
    let origins = "https://dashboard.example.com, http://localhost:3000/";
    let server = Server::start_with(&[("HONE_CORS_ORIGINS", origins)]);
    make_key(server.data_dir(), "team-a");
    for origin in ["https://dashboard.example.com", "http://localhost:3000"] {
        for path in ["/v1/files", "/v1/fine_tuning/jobs/ftjob-1/cancel", "/v1/models/a"] {
            let asked = preflight(&server, path, origin).await;
            assert_eq!(asked.status, 200, "no key is needed: {}", asked.text);
            assert_eq!(asked.headers[ALLOW], origin);
            let methods = asked.headers["access-control-allow-methods"].to_str().expect("a text");
            for method in ["GET", "POST", "DELETE"] {
                assert!(methods.contains(method), "{methods}");
            }
            let headers = &asked.headers["access-control-allow-headers"];
            assert_eq!(headers, "authorization,x-stainless-os");
            assert!(!asked.headers.contains_key("access-control-allow-credentials"));
        }
        // The page can read why it was refused.
        let refused = get_from(&server, "/v1/models", origin).await;
        refused.error(401);
        assert_eq!(refused.headers[ALLOW], origin);
        let exposed = refused.headers["access-control-expose-headers"].to_str().expect("a text");
        assert!(exposed.contains("x-request-id") && exposed.contains("retry-after"), "{exposed}");
    }
    for origin in ["https://evil.example.com", "http://localhost:3001", "null"] {
        assert!(!preflight(&server, "/v1/files", origin).await.headers.contains_key(ALLOW));
        let refused = get_from(&server, "/v1/models", origin).await;
        assert!(!refused.headers.contains_key(ALLOW), "{origin}");
    }
}

#[test]
fn what_is_no_origin_is_refused_at_start_with_an_example() {
    for wrong in ["*", "dashboard.example.com", "https://a.example/path", "ftp://a.example"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hone"));
        let output = command.args(["serve", "--cors-origin", wrong]).output().expect("it runs");
        assert!(!output.status.success(), "{wrong}");
        let message = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(message.contains("https://dashboard.example.com"), "{message}");
    }
}
