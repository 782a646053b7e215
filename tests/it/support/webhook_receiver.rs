//! A receiver of webhooks: a real server in the test's own process that keeps what comes and answers as
//! the test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use axum::serve::Listener;
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::server::Server;

/// Longest wait for a delivery.
const PATIENCE: Duration = Duration::from_secs(60);

/// All events that hone tells.
pub const ALL: [&str; 3] =
    ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"];

/// What came in one request.
#[derive(Debug, Clone)]
pub struct Received {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Received {
    /// A header, which must be there.
    pub fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().expect("a text")
    }

    pub fn timestamp(&self) -> i64 {
        self.header("webhook-timestamp").parse().expect("a number")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// Whether this secret has signed it, by the standard's own library.
    pub fn is_signed_by(&self, secret: &str) -> bool {
        Webhook::new(secret).expect("a secret").verify(&self.body, &self.headers).is_ok()
    }
}

/// How a receiver answers the request with this number, which begins at 0.
type Answers = dyn Fn(usize) -> Answer + Send + Sync;

/// One answer.
pub struct Answer {
    /// Comes first.
    pub delay: Duration,
    pub response: Response,
}

/// An answer at once, with an empty body.
pub fn status(status: u16) -> Answer {
    let response = Response::builder().status(status).body(axum::body::Body::empty());
    Answer { delay: Duration::ZERO, response: response.expect("a response") }
}

#[derive(Clone)]
struct Shared {
    received: Arc<Mutex<Vec<Received>>>,
    answers: Arc<Answers>,
}

pub struct Receiver {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    task: JoinHandle<()>,
}

impl Receiver {
    /// A receiver that takes everything.
    pub async fn start() -> Self {
        Self::answering(|_number| status(200)).await
    }

    /// A receiver with answers of its own.
    pub async fn answering(answers: impl Fn(usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        Self::listening(listener, answers)
    }

    /// A receiver behind a listener of its own.
    pub fn listening(
        listener: impl Listener<Addr = SocketAddr>,
        answers: impl Fn(usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().expect("an address");
        let received = Arc::default();
        let shared = Shared { received: Arc::clone(&received), answers: Arc::new(answers) };
        let router = Router::new().fallback(take).with_state(shared);
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("serves");
        });
        Self { address, received, task }
    }

    /// What has come so far.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().expect("not poisoned").clone()
    }

    /// What has come as soon as there are `count` requests; no more may have come.
    pub async fn until(&self, count: usize) -> Vec<Received> {
        let start = Instant::now();
        loop {
            let received = self.received();
            if received.len() >= count {
                assert_eq!(received.len(), count, "{received:#?}");
                return received;
            }
            assert!(start.elapsed() < PATIENCE, "{count} are waited for: {received:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Makes an endpoint of this receiver; the reply.
    pub async fn endpoint(&self, server: &Server, event_types: &[&str]) -> Value {
        let body = json!({"name": "tests", "url": format!("http://{}/hook", self.address),
            "event_types": event_types});
        server.post("/v1/webhook_endpoints", body).await.ok()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take(State(shared): State<Shared>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let number = {
        let mut received = shared.received.lock().expect("not poisoned");
        received.push(Received { path: uri.path().to_owned(), headers, body });
        received.len() - 1
    };
    let answer = (shared.answers)(number);
    tokio::time::sleep(answer.delay).await;
    answer.response
}

/// A server that may deliver to receivers on this machine.
pub fn server() -> Server {
    Server::start_with(&[("HONE_WEBHOOK_ALLOW", "127.0.0.0/8,::1")])
}

/// A text of a reply.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// An endpoint's log, newest first.
pub async fn log(server: &Server, endpoint: &Value) -> Vec<Value> {
    let path = format!("/v1/webhook_endpoints/{}/deliveries?limit=100", text(&endpoint["id"]));
    server.get(&path).await.ok()["data"].as_array().expect("a list").clone()
}

/// An endpoint's log as soon as it is as wanted.
pub async fn log_until(
    server: &Server,
    endpoint: &Value,
    wanted: impl Fn(&[Value]) -> bool,
) -> Vec<Value> {
    let start = Instant::now();
    loop {
        let log = log(server, endpoint).await;
        if wanted(&log) {
            return log;
        }
        assert!(start.elapsed() < PATIENCE, "still waiting: {log:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
