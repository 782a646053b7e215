//! Where webhooks may not go, seen from outside.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use serde_json::json;

use crate::support::server::{Server, chat_lines};
use crate::support::webhook_receiver::{
    ALL, Answer, Receiver, log, log_until, server, status, text,
};

#[tokio::test]
async fn an_endpoint_on_a_private_network_is_refused_unless_it_is_allowed() {
    let closed = Server::start();
    let make = async |server: &Server, url: &str| {
        let body = json!({"name": "n", "url": url, "event_types": ALL});
        server.post("/v1/webhook_endpoints", body).await
    };
    for url in [
        "https://127.0.0.1/hook",
        "https://2130706433/hook",
        "https://0177.0.0.1/hook",
        "https://[::1]/hook",
        "https://[::ffff:127.0.0.1]/hook",
        "https://169.254.169.254/latest/meta-data/",
        "https://100.64.0.1/hook",
        "https://localhost/hook",
        "https://LOCALHOST:8443/hook",
        "http://127.0.0.1/hook",
        "http://localhost/hook",
        "http://93.184.216.34/hook",
        "https://me:secret@93.184.216.34/hook",
        "gopher://93.184.216.34/hook",
    ] {
        let error = make(&closed, url).await.error(400);
        assert_eq!(error["param"], "url", "{url}");
        assert!(!text(&error["message"]).contains("127.0.0.1"), "no look-up is told: {error}");
    }
    make(&closed, "https://93.184.216.34/hook").await.ok();
    let opened = server();
    make(&opened, "http://localhost/hook").await.ok();
    for url in ["http://10.0.0.1/hook", "https://10.0.0.1/hook", "https://[::ffff:127.0.0.1]/hook"]
    {
        make(&opened, url).await.error(400);
    }
    // A change is judged as a new endpoint is.
    let made = make(&opened, "http://127.0.0.1:9/hook").await.ok();
    let path = format!("/v1/webhook_endpoints/{}", text(&made["id"]));
    let error = opened.post(&path, json!({"url": "https://10.0.0.1/"})).await.error(400);
    assert_eq!(error["param"], "url");
}

#[tokio::test]
async fn an_address_is_judged_again_at_every_delivery() {
    let opened = server();
    let receiver = Receiver::start().await;
    let by_address = receiver.endpoint(&opened, &ALL).await;
    let body = json!({"name": "n", "event_types": ALL,
        "url": format!("http://localhost:{}/hook", receiver.address.port())});
    let by_name = opened.post("/v1/webhook_endpoints", body).await.ok();
    let closed = opened.kill_and_restart_with(&[]);
    closed.create_job(&chat_lines(9), json!({})).await;
    for endpoint in [by_address, by_name] {
        let tried = |log: &[serde_json::Value]| log[0]["attempts"][0]["error"].is_string();
        let log = log_until(&closed, &endpoint, tried).await;
        let error = text(&log[0]["attempts"][0]["error"]);
        assert!(error.contains("--webhook-allow"), "{error}");
        assert_eq!(log[0]["status"], "pending", "the operator may allow it yet");
        let path = format!("/v1/webhook_endpoints/{}/test", text(&endpoint["id"]));
        closed.post(&path, json!({"event_type": ALL[0]})).await.error(400);
    }
    assert!(receiver.received().is_empty());
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let server = server();
    let inner = Receiver::start().await;
    let location = format!("http://{}/secret", inner.address);
    let outer = Receiver::answering(move |_number| {
        let response = Response::builder().status(307).header("location", &location);
        Answer { response: response.body(Body::empty()).expect("a response"), ..status(200) }
    })
    .await;
    let endpoint = outer.endpoint(&server, &ALL).await;
    server.create_job(&chat_lines(9), json!({})).await;
    let log = log_until(&server, &endpoint, |log| !log[0]["attempts"][0].is_null()).await;
    assert_eq!(log[0]["attempts"][0]["status_code"], 307);
    assert!(text(&log[0]["attempts"][0]["error"]).contains("redirects are not followed"));
    assert!(inner.received().is_empty());
}

#[tokio::test]
async fn a_reply_without_end_is_cut_off_and_silence_is_not_waited_for() {
    let server = server();
    let endless = Receiver::answering(|_number| {
        let flood = futures_util::stream::repeat_with(|| {
            Ok::<Bytes, std::convert::Infallible>(Bytes::from_static(&[b'x'; 4096]))
        });
        Answer { response: Response::new(Body::from_stream(flood)), ..status(200) }
    })
    .await;
    let silent =
        Receiver::answering(|_number| Answer { delay: Duration::from_secs(600), ..status(200) })
            .await;
    let of_endless = endless.endpoint(&server, &ALL).await;
    let of_silent = silent.endpoint(&server, &ALL).await;
    server.create_job(&chat_lines(9), json!({})).await;
    log_until(&server, &of_endless, |log| log[0]["status"] == "delivered").await;
    assert!(log(&server, &of_silent).await[0]["attempts"][0].is_null(), "before the time is over");
    let log = log_until(&server, &of_silent, |log| !log[0]["attempts"][0].is_null()).await;
    let attempt = &log[0]["attempts"][0];
    assert_eq!(attempt["error"], "no answer within 10 seconds");
}

#[tokio::test]
async fn a_proxy_of_the_environment_sees_nothing() {
    let proxy = Receiver::start().await;
    let url = format!("http://{}", proxy.address);
    let server = Server::start_with(&[
        ("HONE_WEBHOOK_ALLOW", "127.0.0.1"),
        ("HTTP_PROXY", &url),
        ("http_proxy", &url),
        ("ALL_PROXY", &url),
    ]);
    let receiver = Receiver::start().await;
    receiver.endpoint(&server, &ALL).await;
    server.create_job(&chat_lines(9), json!({})).await;
    receiver.until(1).await;
    assert!(proxy.received().is_empty());
}
