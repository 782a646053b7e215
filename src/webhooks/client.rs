//! Brings one delivery to its endpoint: signed for this attempt, to an address that the policy has
//! judged, once, without following where the reply points to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use reqwest::Client;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect;
use standardwebhooks::Webhook;

use super::policy::{Policy, Scheme, Target, TargetError};
use crate::domain::webhook::{SigningSecret, WebhookEvent};
use crate::util::error_source;

/// Longest time from the look-up of the host to the end of the reply.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time for a look-up alone.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// How many bytes of a reply are read. Nothing is done with them: an endpoint that still writes when the
/// connection is closed may take that for a failure.
const MAX_REPLY_BYTES: usize = 64 * 1024;

/// Why there can be no courier.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client of webhooks cannot be made: {0}")]
pub struct WebhookClientError(#[from] reqwest::Error);

/// Why nothing was delivered.
#[derive(Debug, thiserror::Error)]
pub enum Undelivered {
    /// The policy refuses the address.
    #[error(transparent)]
    Refused(#[from] TargetError),
    /// The stored secret signs nothing.
    #[error("the endpoint's secret cannot sign: rotate it")]
    Unsignable,
    /// Nothing answered in time.
    #[error("no answer within {} seconds", TIMEOUT.as_secs())]
    TimedOut,
    /// Nothing answered.
    #[error("{0}")]
    Unreachable(String),
}

/// Finds every address of a name.
type LookUp = fn(String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>>;

/// Signs and sends.
pub struct WebhookClient {
    policy: Arc<Policy>,
    look_up: LookUp,
    https: Client,
    http: Client,
}

/// One delivery of an event: what an attempt needs beside the address.
#[derive(Debug, Clone, Copy)]
pub struct Parcel<'a> {
    /// `webhook-id`.
    pub id: &'a str,
    /// What is told.
    pub event: &'a WebhookEvent,
    /// Those who sign it.
    pub secrets: &'a [&'a SigningSecret],
}

impl WebhookClient {
    /// A courier that goes where `policy` lets it.
    pub fn new(policy: Policy) -> Result<Self, WebhookClientError> {
        Self::asking(look_up, policy)
    }

    /// One that asks `look_up` for the addresses of names.
    fn asking(look_up: LookUp, policy: Policy) -> Result<Self, WebhookClientError> {
        let policy = Arc::new(policy);
        let client = |scheme| {
            Client::builder()
                .user_agent(concat!("hone/", env!("CARGO_PKG_VERSION")))
                .timeout(TIMEOUT)
                .redirect(redirect::Policy::none())
                // A proxy would do the look-up, behind the policy's back.
                .no_proxy()
                // Every attempt looks up and judges anew.
                .pool_max_idle_per_host(0)
                .dns_resolver(Arc::new(Resolver { policy: Arc::clone(&policy), scheme, look_up }))
                .build()
        };
        Ok(Self { https: client(Scheme::Https)?, http: client(Scheme::Http)?, policy, look_up })
    }

    /// Judges an address that a client wants deliveries to go to. A name that cannot be looked up now
    /// is not refused: it is looked up at every delivery.
    pub async fn judge(&self, url: &str) -> Result<(), TargetError> {
        let target = self.policy.read(url)?;
        let Some(name) = &target.name else {
            return Ok(());
        };
        match (self.look_up)(name.clone()).await {
            Ok(addresses) => self.policy.judge(target.scheme, &addresses).map(|_permitted| ()),
            Err(error) => {
                tracing::debug!(host = name, %error, "a webhook's host cannot be looked up yet");
                Ok(())
            }
        }
    }

    /// One attempt at the time `now`; what the endpoint answered.
    pub async fn deliver(
        &self,
        url: &str,
        parcel: Parcel<'_>,
        now: i64,
    ) -> Result<u16, Undelivered> {
        let Target { url, scheme, .. } = self.policy.read(url)?;
        let body = parcel.event.body();
        let signatures = sign(parcel, now, &body).ok_or(Undelivered::Unsignable)?;
        let client = match scheme {
            Scheme::Https => &self.https,
            Scheme::Http => &self.http,
        };
        let request = client
            .post(url)
            .header("content-type", "application/json")
            .header(standardwebhooks::HEADER_WEBHOOK_ID, parcel.id)
            .header(standardwebhooks::HEADER_WEBHOOK_TIMESTAMP, now)
            .header(standardwebhooks::HEADER_WEBHOOK_SIGNATURE, signatures)
            .body(body);
        let mut response = request.send().await.map_err(why)?;
        let status = response.status().as_u16();
        let mut read = 0;
        while read < MAX_REPLY_BYTES {
            match response.chunk().await {
                Ok(Some(chunk)) => read += chunk.len(),
                // The status is the answer, whatever comes after it.
                Ok(None) | Err(_) => break,
            }
        }
        Ok(status)
    }
}

/// The signatures of all secrets, separated by spaces as the standard has it.
fn sign(parcel: Parcel<'_>, now: i64, body: &str) -> Option<String> {
    let mut signatures = Vec::with_capacity(parcel.secrets.len());
    for secret in parcel.secrets {
        let key = Webhook::new(secret.expose()).ok()?;
        signatures.push(key.sign(parcel.id, now, body.as_bytes()).ok()?);
    }
    Some(signatures.join(" "))
}

/// The innermost reason of a failure. The outer ones name the address, which is known.
fn why(error: reqwest::Error) -> Undelivered {
    if error.is_timeout() {
        return Undelivered::TimedOut;
    }
    let error = error.without_url();
    let innermost = error_source::innermost(&error);
    match innermost.downcast_ref::<TargetError>() {
        Some(refused) => Undelivered::Refused(refused.clone()),
        None => Undelivered::Unreachable(innermost.to_string()),
    }
}

/// Looks names up for one client and lets it see the permitted addresses only, so that what is judged is
/// what is connected to. Hosts that are addresses do not come here: [`Policy::read`] has judged them.
struct Resolver {
    policy: Arc<Policy>,
    scheme: Scheme,
    look_up: LookUp,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, scheme) = (Arc::clone(&self.policy), self.scheme);
        let addresses = (self.look_up)(name.as_str().to_owned());
        Box::pin(async move {
            let addresses = addresses.await?;
            let permitted = policy.judge(scheme, &addresses)?;
            // The client puts the port of the URL in place of this one.
            let sockets = permitted.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(sockets) as Addrs)
        })
    }
}

/// Every address of a name, as the system knows it.
fn look_up(name: String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> {
    Box::pin(async move {
        let looked_up = tokio::net::lookup_host((name, 0));
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, looked_up).await??;
        Ok(found.map(|socket| socket.ip()).collect())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::domain::webhook::EventType;

    fn event() -> WebhookEvent {
        WebhookEvent {
            id: "evt_1".to_owned(),
            kind: EventType::JobSucceeded,
            subject: "ftjob-1".to_owned(),
            created_at: 1_790_000_000,
        }
    }

    fn now() -> i64 {
        crate::util::clock::Clock::now(&crate::util::clock::SystemClock)
    }

    async fn attempt(networks: &[&str], url: &str) -> Result<u16, Undelivered> {
        let networks = networks.iter().map(|text| text.parse().expect("a network")).collect();
        let courier = WebhookClient::new(Policy::new(networks)).expect("a courier");
        let secret = SigningSecret::random().expect("random bytes");
        let parcel = Parcel { id: "wh_1", event: &event(), secrets: &[&secret] };
        courier.deliver(url, parcel, now()).await
    }

    #[tokio::test]
    async fn a_name_at_a_private_address_is_refused_when_it_is_delivered_to() {
        // The look-up is the system's; `localhost` is the one name that every machine has.
        for url in ["https://localhost/", "https://LOCALHOST:9/x"] {
            let refused = attempt(&[], url).await.expect_err("it is refused");
            assert!(matches!(refused, Undelivered::Refused(TargetError::NotPublic)), "{refused:?}");
        }
        let plain = attempt(&["10.0.0.0/8"], "http://localhost/").await.expect_err("refused");
        assert!(matches!(plain, Undelivered::Refused(TargetError::Plain)), "{plain:?}");
    }

    #[tokio::test]
    async fn an_allowed_name_is_connected_to_at_the_allowed_address_alone() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let error = attempt(&["127.0.0.1/32"], &format!("http://localhost:{port}/")).await;
        let error = error.expect_err("nobody listens").to_string();
        assert!(error.contains("refused") && !error.contains("--webhook-allow"), "{error}");
    }

    /// Delivers to a name that is at another address each time it is looked up, on a port of the
    /// loopback network; whether it was delivered, and who was connected to.
    async fn rebind(networks: &[&str], look_up: LookUp) -> (Result<u16, Undelivered>, Vec<u8>) {
        let listeners = async |last: u8, port: u16| {
            tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, last], port)))
                .await
                .expect("listens")
        };
        let first = listeners(1, 0).await;
        let port = first.local_addr().expect("an address").port();
        let second = listeners(2, port).await;
        let networks = networks.iter().map(|text| text.parse().expect("a network")).collect();
        let courier = WebhookClient::asking(look_up, Policy::new(networks)).expect("a courier");
        let secret = SigningSecret::random().expect("random bytes");
        let parcel = Parcel { id: "wh_1", event: &event(), secrets: &[&secret] };
        let url = format!("http://rebinds.example:{port}/");
        let answer = async |listener: &tokio::net::TcpListener, last: u8| {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 4096];
            let count = stream.read(&mut request).await.expect("a request");
            assert_ne!(count, 0, "the connection is closed");
            let reply = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
            stream.write_all(reply).await.expect("takes it");
            last
        };
        let delivery = courier.deliver(&url, parcel, now());
        let (delivered, connected) = tokio::join!(delivery, async {
            let either = async {
                tokio::select! { last = answer(&first, 1) => last, last = answer(&second, 2) => last }
            };
            tokio::time::timeout(Duration::from_millis(300), either).await
        });
        (delivered, connected.into_iter().collect())
    }

    #[tokio::test]
    async fn a_name_that_moves_after_it_was_judged_is_connected_to_where_it_was_judged() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        fn moving(_name: String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> {
            let last = if ASKED.fetch_add(1, Ordering::Relaxed) == 0 { 2 } else { 1 };
            Box::pin(async move { Ok(vec![IpAddr::from([127, 0, 0, last])]) })
        }
        // The first look-up leads to the one address that is allowed, a second one would elsewhere.
        let (delivered, connected) = rebind(&["127.0.0.2/32"], moving).await;
        assert_eq!((delivered.expect("is delivered"), connected), (204, vec![2]));
        assert_eq!(ASKED.load(Ordering::Relaxed), 1, "what is judged is what is connected to");
        // It has moved by the next delivery, which is judged anew.
        let (delivered, connected) = rebind(&["127.0.0.2/32"], moving).await;
        let refused = delivered.expect_err("it is refused");
        assert!(matches!(refused, Undelivered::Refused(TargetError::Plain)), "{refused:?}");
        assert!(connected.is_empty(), "{connected:?}");
    }

    #[test]
    fn each_secret_signs_so_that_either_verifies() {
        let secrets = [(); 2].map(|()| SigningSecret::random().expect("random bytes"));
        let (event, now) = (event(), now());
        let parcel = Parcel { id: "wh_1", event: &event, secrets: &[&secrets[0], &secrets[1]] };
        let signatures = sign(parcel, now, &event.body()).expect("signs");
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert("webhook-id", "wh_1".parse().expect("a value"));
        headers.insert("webhook-timestamp", now.into());
        headers.insert("webhook-signature", signatures.parse().expect("a value"));
        for secret in &secrets {
            let key = Webhook::new(secret.expose()).expect("a key");
            key.verify(event.body().as_bytes(), &headers).expect("verifies");
        }
        let other = SigningSecret::random().expect("random bytes");
        let other = Webhook::new(other.expose()).expect("a key");
        other.verify(event.body().as_bytes(), &headers).expect_err("not this secret's");
    }
}
