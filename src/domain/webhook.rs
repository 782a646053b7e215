//! Webhooks: who is told when a job ends, what they are told, and what has become of it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::domain::job::JobStatus;
use crate::domain::project::Project;

/// Most endpoints of a project: each of them makes a row when a job ends.
pub const MAX_ENDPOINTS: i64 = 100;

/// How many random bytes a secret has; the standard asks for 24 to 64.
const SECRET_BYTES: usize = 32;

/// How secrets begin, by the standard; the rest is base64.
const SECRET_PREFIX: &str = "whsec_";

/// What hone tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// A job has succeeded.
    JobSucceeded,
    /// A job has failed.
    JobFailed,
    /// A job was cancelled.
    JobCancelled,
}

impl EventType {
    /// Every event that hone tells.
    pub const ALL: &'static [EventType] =
        &[Self::JobSucceeded, Self::JobFailed, Self::JobCancelled];

    /// Events that OpenAI tells and that never happen here: they are about what hone does not do.
    /// Endpoints may ask for them beside others.
    pub const ELSEWHERE: &'static [&'static str] = &[
        "batch.completed",
        "batch.failed",
        "batch.expired",
        "batch.cancelled",
        "response.completed",
        "response.failed",
        "response.cancelled",
        "response.incomplete",
        "eval.run.succeeded",
        "eval.run.failed",
        "eval.run.canceled",
        "realtime.call.incoming",
        "video.completed",
        "video.failed",
        "agent.environment.ready",
        "agent.environment.failed",
        "agent.environment.suspended",
        "agent.environment.expired",
        "agent.session.created",
        "agent.session.action_required",
        "agent.session.in_progress",
        "agent.session.idle",
        "agent.session.failed",
        "safety.alert.created",
    ];

    /// The spelling on the wire and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JobSucceeded => "fine_tuning.job.succeeded",
            Self::JobFailed => "fine_tuning.job.failed",
            Self::JobCancelled => "fine_tuning.job.cancelled",
        }
    }

    /// The inverse of [`EventType::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|one| one.as_str() == text)
    }

    /// What is told when a job has come to this state, if that is an end.
    pub fn of(status: JobStatus) -> Option<Self> {
        match status {
            JobStatus::Succeeded => Some(Self::JobSucceeded),
            JobStatus::Failed => Some(Self::JobFailed),
            JobStatus::Cancelled => Some(Self::JobCancelled),
            JobStatus::ValidatingFiles
            | JobStatus::Queued
            | JobStatus::Running
            | JobStatus::Paused => None,
        }
    }
}

/// The key that an endpoint's deliveries are signed with. It is kept as it is, since signing needs it;
/// clients see it when it is made and never again, and logs never do.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningSecret(String);

impl SigningSecret {
    /// A secret of the system's random bytes; fails when the system has none.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; SECRET_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(format!("{SECRET_PREFIX}{}", STANDARD.encode(bytes))))
    }

    /// A secret from the store.
    pub fn stored(text: String) -> Self {
        Self(text)
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What may be shown at any time: the beginning that all share, and the last four characters.
    pub fn hint(&self) -> String {
        let shown = self.0.len().saturating_sub(4).max(SECRET_PREFIX.len());
        format!("{SECRET_PREFIX}...{}", self.0.get(shown..).unwrap_or_default())
    }
}

impl std::fmt::Debug for SigningSecret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "SigningSecret({})", self.hint())
    }
}

/// Somebody who wants to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookEndpoint {
    /// `whe_…`.
    pub id: String,
    /// Whose jobs it is told of.
    pub project: Project,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds of the last change of what it is or of its secret.
    pub updated_at: i64,
    /// For people.
    pub name: String,
    /// Where deliveries go.
    pub url: String,
    /// Which events it asks for: spellings of [`EventType`], or some of [`EventType::ELSEWHERE`].
    pub event_types: Vec<String>,
    /// Signs deliveries.
    pub secret: SigningSecret,
    /// Signs them as well, until its time is over.
    pub previous_secret: Option<RetiringSecret>,
}

/// The secret before the last rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetiringSecret {
    /// The secret.
    pub secret: SigningSecret,
    /// Unix seconds from which on it signs no more.
    pub until: i64,
}

impl WebhookEndpoint {
    /// The secrets that sign at this time, the newest first.
    pub fn signing_secrets(&self, now: i64) -> Vec<&SigningSecret> {
        let mut secrets = vec![&self.secret];
        secrets.extend(
            self.previous_secret
                .as_ref()
                .filter(|previous| now < previous.until)
                .map(|previous| &previous.secret),
        );
        secrets
    }
}

/// What is new about an endpoint; `None` leaves it as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointChange {
    /// For people.
    pub name: Option<String>,
    /// Where deliveries go.
    pub url: Option<String>,
    /// All the events that it asks for.
    pub event_types: Option<Vec<String>>,
}

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookEvent {
    /// `evt_…`, the same for all endpoints.
    pub id: String,
    /// What happened.
    pub kind: EventType,
    /// What it happened to: the id of a job.
    pub subject: String,
    /// Unix seconds.
    pub created_at: i64,
}

impl WebhookEvent {
    /// The body of its deliveries: the same bytes at every attempt.
    pub fn body(&self) -> String {
        json!({
            "id": self.id,
            "object": "event",
            "created_at": self.created_at,
            "type": self.kind.as_str(),
            "data": {"id": self.subject},
        })
        .to_string()
    }
}

/// What has become of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryStatus {
    /// It will be tried, again or for the first time.
    Pending,
    /// The endpoint has taken it.
    Delivered,
    /// It is given up.
    Failed,
}

impl DeliveryStatus {
    /// The spelling on the wire and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }

    /// The inverse of [`DeliveryStatus::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Delivered, Self::Failed].into_iter().find(|one| one.as_str() == text)
    }
}

/// One try to deliver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryAttempt {
    /// Unix seconds at which it began; what the signature says.
    pub at: i64,
    /// What the endpoint answered, if it did.
    pub status_code: Option<u16>,
    /// Why that was not a delivery.
    pub error: Option<String>,
}

/// An event on its way to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookDelivery {
    /// `wh_…`: the `webhook-id` of every attempt, by which receivers know a repetition.
    pub id: String,
    /// To whom.
    pub endpoint_id: String,
    /// What.
    pub event: WebhookEvent,
    /// Its status.
    pub status: DeliveryStatus,
    /// The tries so far, the first one first.
    pub attempts: Vec<DeliveryAttempt>,
    /// Unix seconds of the next try, while it is pending.
    pub next_attempt_at: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_random_and_never_shown_by_accident() {
        let secret = SigningSecret::random().expect("random bytes");
        let encoded = secret.expose().strip_prefix("whsec_").expect("the standard's prefix");
        assert_eq!(STANDARD.decode(encoded).expect("base64").len(), 32);
        assert_ne!(secret, SigningSecret::random().expect("random bytes"));
        for shown in [secret.hint(), format!("{secret:?}")] {
            assert!(!shown.contains(&encoded[..encoded.len() - 4]), "{shown}");
        }
        assert!(secret.expose().ends_with(&secret.hint()["whsec_...".len()..]));
        assert_eq!(SigningSecret::stored("whsec_é".to_owned()).hint(), "whsec_...é");
    }

    #[test]
    fn every_end_of_a_job_is_an_event_and_nothing_else_is() {
        for status in JobStatus::ALL {
            let event = EventType::of(*status);
            assert_eq!(event.is_some(), status.is_terminal(), "{status:?}");
            if let Some(event) = event {
                assert_eq!(EventType::parse(event.as_str()), Some(event));
                assert!(event.as_str().ends_with(status.as_str()));
            }
        }
        assert!(EventType::ELSEWHERE.iter().all(|name| EventType::parse(name).is_none()));
    }
}
