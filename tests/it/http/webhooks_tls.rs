//! Webhooks over TLS: they go to those whose certificate the server's machine trusts, and to nobody else.

use serde_json::{Value, json};

use crate::support::authority::Authority;
use crate::support::server::{Server, chat_lines};
use crate::support::webhook_receiver::{ALL, Receiver, log_until, status, text};

/// A receiver with a certificate for this name.
async fn receiver(authority: &Authority, name: &str) -> Receiver {
    Receiver::listening(authority.listener(name).await, |_number| status(200))
}

/// An endpoint at `localhost`, spoken to over TLS.
async fn endpoint(server: &Server, receiver: &Receiver) -> Value {
    let url = format!("https://localhost:{}/hook", receiver.address.port());
    let body = json!({"name": "tests", "url": url, "event_types": ALL});
    server.post("/v1/webhook_endpoints", body).await.ok()
}

#[tokio::test]
async fn webhooks_over_tls_reach_those_whom_the_machine_trusts_and_nobody_else() {
    let (company, stranger) = (Authority::new("a company"), Authority::new("a stranger"));
    let trusted = receiver(&company, "localhost").await;
    let of_another_name = receiver(&company, "elsewhere.example").await;
    let of_a_stranger = receiver(&stranger, "localhost").await;
    let folder = tempfile::tempdir().expect("a folder");
    let authorities = company.file(folder.path());
    let server = Server::start_with(&[
        ("HONE_WEBHOOK_ALLOW", "127.0.0.0/8,::1"),
        ("SSL_CERT_FILE", authorities.to_str().expect("a text")),
    ]);
    let reached = endpoint(&server, &trusted).await;
    let refused = [
        (endpoint(&server, &of_another_name).await, "certificate not valid for name \"localhost\""),
        (endpoint(&server, &of_a_stranger).await, "invalid peer certificate: UnknownIssuer"),
    ];
    // Fails when it is created: nine examples are too few.
    let job = server.create_job(&chat_lines(9), json!({})).await;

    let received = trusted.until(1).await.remove(0);
    assert!(received.is_signed_by(text(&reached["signing_secret"])));
    assert_eq!(received.json()["data"]["id"], job);
    log_until(&server, &reached, |log| log[0]["status"] == "delivered").await;
    for (endpoint, why) in refused {
        let tried = |log: &[Value]| log[0]["attempts"][0]["error"].is_string();
        let log = log_until(&server, &endpoint, tried).await;
        let error = text(&log[0]["attempts"][0]["error"]);
        assert!(error.contains(why), "{error}");
        assert_eq!(log[0]["status"], "pending", "the operator may come to trust it");
    }
    assert!(of_another_name.received().is_empty() && of_a_stranger.received().is_empty());
}
