//! Sends one delivery to its endpoint: signed for this attempt, to an address that the policy permits, once,
//! without following redirects.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use reqwest::Client;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect;
use standardwebhooks::Webhook;

use super::address_policy::{DeliveryTarget, Policy, TargetError, UrlScheme};
use crate::domain::webhook::{SigningSecret, WebhookEvent};
use crate::util::error_source;

/// Longest time from the DNS lookup to the end of the response.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time for the DNS lookup alone.
const DNS_LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// How many bytes of a response are read. They are not used. An endpoint that is still writing when the
/// connection is closed may report a failure.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// The HTTP client of webhooks cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client of webhooks cannot be made: {0}")]
pub struct WebhookClientError(#[from] reqwest::Error);

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// The policy refuses the address.
    #[error(transparent)]
    Refused(#[from] TargetError),
    /// The stored secret cannot sign.
    #[error("the endpoint's secret cannot sign: rotate it")]
    Unsignable,
    /// The endpoint did not answer in time.
    #[error("no answer within {} seconds", TIMEOUT.as_secs())]
    TimedOut,
    /// The endpoint cannot be reached.
    #[error("{0}")]
    Unreachable(String),
}

/// Finds all addresses of a host name.
type DnsLookup = fn(String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>>;

/// Signs and sends deliveries.
pub struct WebhookClient {
    policy: Arc<Policy>,
    dns_lookup: DnsLookup,
    https: Client,
    http: Client,
}

/// A delivery as an attempt sends it.
#[derive(Debug, Clone, Copy)]
pub struct OutgoingDelivery<'a> {
    /// `webhook-id`.
    pub id: &'a str,
    /// The event.
    pub event: &'a WebhookEvent,
    /// The secrets that sign it.
    pub secrets: &'a [&'a SigningSecret],
}

impl WebhookClient {
    /// A client that delivers where `policy` permits.
    pub fn new(policy: Policy) -> Result<Self, WebhookClientError> {
        Self::with_dns_lookup(system_dns_lookup, policy)
    }

    /// A client that finds the addresses of names with `dns_lookup`.
    fn with_dns_lookup(dns_lookup: DnsLookup, policy: Policy) -> Result<Self, WebhookClientError> {
        let policy = Arc::new(policy);
        let client = |scheme| {
            Client::builder()
                .user_agent(concat!("hone/", env!("CARGO_PKG_VERSION")))
                .timeout(TIMEOUT)
                .redirect(redirect::Policy::none())
                // A proxy would do the DNS lookup itself and bypass the policy.
                .no_proxy()
                // Every attempt looks the name up and checks the addresses again.
                .pool_max_idle_per_host(0)
                .dns_resolver(Arc::new(Resolver {
                    policy: Arc::clone(&policy),
                    scheme,
                    dns_lookup,
                }))
                .build()
        };
        Ok(Self {
            https: client(UrlScheme::Https)?,
            http: client(UrlScheme::Http)?,
            policy,
            dns_lookup,
        })
    }

    /// Checks the URL of an endpoint. A host name that cannot be looked up now is not refused: it is looked
    /// up again at every delivery.
    pub async fn check_url(&self, url: &str) -> Result<(), TargetError> {
        let target = self.policy.check_url(url)?;
        let Some(name) = &target.name else {
            return Ok(());
        };
        match (self.dns_lookup)(name.clone()).await {
            Ok(addresses) => self.policy.permitted(target.scheme, &addresses).map(|_permitted| ()),
            Err(error) => {
                tracing::debug!(host = name, %error, "the host of a webhook cannot be looked up yet");
                Ok(())
            }
        }
    }

    /// Makes one attempt at the time `now`; the status code of the response.
    pub async fn deliver(
        &self,
        url: &str,
        delivery: OutgoingDelivery<'_>,
        now: i64,
    ) -> Result<u16, DeliveryError> {
        let DeliveryTarget { url, scheme, .. } = self.policy.check_url(url)?;
        let body = delivery.event.body();
        let signatures = sign(delivery, now, &body).ok_or(DeliveryError::Unsignable)?;
        let client = match scheme {
            UrlScheme::Https => &self.https,
            UrlScheme::Http => &self.http,
        };
        let request = client
            .post(url)
            .header("content-type", "application/json")
            .header(standardwebhooks::HEADER_WEBHOOK_ID, delivery.id)
            .header(standardwebhooks::HEADER_WEBHOOK_TIMESTAMP, now)
            .header(standardwebhooks::HEADER_WEBHOOK_SIGNATURE, signatures)
            .body(body);
        let mut response = request.send().await.map_err(delivery_error)?;
        let status = response.status().as_u16();
        let mut read = 0;
        while read < MAX_RESPONSE_BYTES {
            match response.chunk().await {
                Ok(Some(chunk)) => read += chunk.len(),
                // The status code counts, whatever happens to the body.
                Ok(None) | Err(_) => break,
            }
        }
        Ok(status)
    }
}

/// The signatures of all secrets, separated by spaces as the standard says.
fn sign(delivery: OutgoingDelivery<'_>, now: i64, body: &str) -> Option<String> {
    let mut signatures = Vec::with_capacity(delivery.secrets.len());
    for secret in delivery.secrets {
        let key = Webhook::new(secret.expose()).ok()?;
        signatures.push(key.sign(delivery.id, now, body.as_bytes()).ok()?);
    }
    Some(signatures.join(" "))
}

/// The innermost cause of a failure. The outer ones only name the URL, which is known.
fn delivery_error(error: reqwest::Error) -> DeliveryError {
    if error.is_timeout() {
        return DeliveryError::TimedOut;
    }
    let error = error.without_url();
    let innermost = error_source::innermost(&error);
    match innermost.downcast_ref::<TargetError>() {
        Some(refused) => DeliveryError::Refused(refused.clone()),
        None => DeliveryError::Unreachable(innermost.to_string()),
    }
}

/// The DNS resolver of one HTTP client. It returns the permitted addresses only, so that the client connects
/// to an address that was checked. Hosts that are addresses do not come here: [`Policy::check_url`] has checked them.
struct Resolver {
    policy: Arc<Policy>,
    scheme: UrlScheme,
    dns_lookup: DnsLookup,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, scheme) = (Arc::clone(&self.policy), self.scheme);
        let addresses = (self.dns_lookup)(name.as_str().to_owned());
        Box::pin(async move {
            let addresses = addresses.await?;
            let permitted = policy.permitted(scheme, &addresses)?;
            // The client replaces this port by that of the URL.
            let sockets = permitted.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(sockets) as Addrs)
        })
    }
}

/// All addresses of a host name, from the system.
fn system_dns_lookup(name: String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> {
    Box::pin(async move {
        let addresses = tokio::net::lookup_host((name, 0));
        let found = tokio::time::timeout(DNS_LOOKUP_TIMEOUT, addresses).await??;
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

    async fn attempt(networks: &[&str], url: &str) -> Result<u16, DeliveryError> {
        let networks = networks.iter().map(|text| text.parse().expect("a network")).collect();
        let client = WebhookClient::new(Policy::new(networks)).expect("a client");
        let secret = SigningSecret::random().expect("random bytes");
        let outgoing = OutgoingDelivery { id: "wh_1", event: &event(), secrets: &[&secret] };
        client.deliver(url, outgoing, now()).await
    }

    #[tokio::test]
    async fn a_name_at_a_private_address_is_refused_when_it_is_delivered_to() {
        // The lookup is the system's; `localhost` is the one name that every machine has.
        for url in ["https://localhost/", "https://LOCALHOST:9/x"] {
            let refused = attempt(&[], url).await.expect_err("it is refused");
            assert!(
                matches!(refused, DeliveryError::Refused(TargetError::NotPublic)),
                "{refused:?}"
            );
        }
        let plain = attempt(&["10.0.0.0/8"], "http://localhost/").await.expect_err("refused");
        assert!(matches!(plain, DeliveryError::Refused(TargetError::Plain)), "{plain:?}");
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
    /// loopback network; whether it was delivered, and which listener was connected to.
    async fn rebind(
        networks: &[&str],
        dns_lookup: DnsLookup,
    ) -> (Result<u16, DeliveryError>, Vec<u8>) {
        let listeners = async |last: u8, port: u16| {
            tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, last], port)))
                .await
                .expect("listens")
        };
        let first = listeners(1, 0).await;
        let port = first.local_addr().expect("an address").port();
        let second = listeners(2, port).await;
        let networks = networks.iter().map(|text| text.parse().expect("a network")).collect();
        let client =
            WebhookClient::with_dns_lookup(dns_lookup, Policy::new(networks)).expect("a client");
        let secret = SigningSecret::random().expect("random bytes");
        let outgoing = OutgoingDelivery { id: "wh_1", event: &event(), secrets: &[&secret] };
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
        let delivery = client.deliver(&url, outgoing, now());
        let (delivered, connected) = tokio::join!(delivery, async {
            let either = async {
                tokio::select! { last = answer(&first, 1) => last, last = answer(&second, 2) => last }
            };
            tokio::time::timeout(Duration::from_millis(300), either).await
        });
        (delivered, connected.into_iter().collect())
    }

    #[tokio::test]
    async fn a_name_that_moves_after_its_check_is_connected_to_at_the_checked_address() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        fn moving(_name: String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> {
            let last = if ASKED.fetch_add(1, Ordering::Relaxed) == 0 { 2 } else { 1 };
            Box::pin(async move { Ok(vec![IpAddr::from([127, 0, 0, last])]) })
        }
        // The first lookup leads to the one allowed address, a second one would lead elsewhere.
        let (delivered, connected) = rebind(&["127.0.0.2/32"], moving).await;
        assert_eq!((delivered.expect("is delivered"), connected), (204, vec![2]));
        assert_eq!(ASKED.load(Ordering::Relaxed), 1, "the checked address is connected to");
        // It has moved by the next delivery, which checks it again.
        let (delivered, connected) = rebind(&["127.0.0.2/32"], moving).await;
        let refused = delivered.expect_err("it is refused");
        assert!(matches!(refused, DeliveryError::Refused(TargetError::Plain)), "{refused:?}");
        assert!(connected.is_empty(), "{connected:?}");
    }

    #[test]
    fn each_secret_signs_so_that_either_verifies() {
        let secrets = [(); 2].map(|()| SigningSecret::random().expect("random bytes"));
        let (event, now) = (event(), now());
        let outgoing =
            OutgoingDelivery { id: "wh_1", event: &event, secrets: &[&secrets[0], &secrets[1]] };
        let signatures = sign(outgoing, now, &event.body()).expect("signs");
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
