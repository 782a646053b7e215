//! What every store promises of webhooks, beside filling the outbox (`store_random_operations`).

use hone::domain::file::{FilePurpose, FileRecord};
use hone::domain::job::{Job, JobStatus, NewEvent};
use hone::domain::project::Project;
use hone::domain::webhook::{
    DeliveryAttempt, DeliveryStatus, EndpointChange, EventType, MAX_ENDPOINTS, SigningSecret,
    WebhookDelivery, WebhookEndpoint,
};
use hone::store::{DueDeliveries, PageRequest, StoreError};

use crate::support::store::{
    ANY_NUMBER, Fixture, START, file, first, job, success, webhook_endpoint,
};

async fn added(fixture: &Fixture, endpoint: WebhookEndpoint) -> WebhookEndpoint {
    assert!(fixture.store.insert_webhook_endpoint(&endpoint).await.expect("adds"));
    endpoint
}

/// Adds a job and cancels it while it waits.
async fn end_a_job(fixture: &Fixture) -> String {
    let id = fixture.add_job().await;
    fixture.store.request_cancel(&id).await.expect("asks");
    id
}

async fn deliveries(fixture: &Fixture, endpoint: &WebhookEndpoint) -> Vec<WebhookDelivery> {
    fixture.store.list_webhook_deliveries(&endpoint.id, &first(100)).await.expect("lists").items
}

fn refused(at: i64) -> DeliveryAttempt {
    DeliveryAttempt { at, status_code: Some(500), error: Some("it answered 500".to_owned()) }
}

#[tokio::test]
async fn an_endpoint_is_read_as_it_was_written_and_belongs_to_its_project() {
    let fixture = Fixture::sqlite().await;
    let store = &fixture.store;
    let mine = added(&fixture, webhook_endpoint()).await;
    let theirs = Project::stored("other".to_owned());
    let other = added(&fixture, WebhookEndpoint { project: theirs, ..webhook_endpoint() }).await;
    for (one, elsewhere) in [(&mine, &other.project), (&other, &mine.project)] {
        let read = store.webhook_endpoint(&one.project, &one.id).await.expect("reads");
        assert_eq!(read.as_ref(), Some(one));
        let listed = store.list_webhook_endpoints(&one.project, &first(9)).await.expect("lists");
        assert_eq!(listed.items, std::slice::from_ref(one));
        let change = EndpointChange { name: Some("stolen".to_owned()), ..Default::default() };
        let secret = SigningSecret::random().expect("random bytes");
        assert_eq!(store.webhook_endpoint(elsewhere, &one.id).await.expect("reads"), None);
        let changed = store.update_webhook_endpoint(elsewhere, &one.id, &change).await;
        assert_eq!(changed.expect("looks"), None);
        let rotated = store.rotate_webhook_secret(elsewhere, &one.id, &secret, 0).await;
        assert_eq!(rotated.expect("looks"), None);
        assert!(!store.delete_webhook_endpoint(elsewhere, &one.id).await.expect("looks"));
        let after = PageRequest { after: Some(one.id.clone()), limit: 9 };
        let page = store.list_webhook_endpoints(elsewhere, &after).await;
        assert!(matches!(page, Err(StoreError::UnknownCursor(_))));
        assert_eq!(store.webhook_endpoint(&one.project, &one.id).await.expect("reads"), read);
    }
    end_a_job(&fixture).await;
    assert_eq!(deliveries(&fixture, &mine).await.len(), 1);
    assert!(deliveries(&fixture, &other).await.is_empty());
    let project = other.project.clone();
    let file = FileRecord { project: project.clone(), ..file(FilePurpose::FineTune) };
    store.insert_file(&file).await.expect("adds");
    let job = Job { project, ..job(&file.id) };
    store.insert_job(&job, &[], ANY_NUMBER).await.expect("adds");
    store.request_cancel(&job.id).await.expect("asks");
    assert_eq!(deliveries(&fixture, &mine).await.len(), 1);
    assert_eq!(deliveries(&fixture, &other).await.len(), 1);
    for _ in 1..MAX_ENDPOINTS {
        added(&fixture, webhook_endpoint()).await;
    }
    assert!(!store.insert_webhook_endpoint(&webhook_endpoint()).await.expect("looks"));
}

#[tokio::test]
async fn a_job_that_did_not_end_is_not_told() {
    let fixture = Fixture::sqlite().await;
    let endpoint = added(&fixture, webhook_endpoint()).await;
    let id = fixture.add_job().await;
    let (lost, _job) = fixture.claim().await;
    fixture.clock.advance(61);
    let (held, _job) = fixture.claim().await;
    let result = fixture.store.finish_succeeded(&lost, &success(&id)).await;
    assert!(matches!(result, Err(StoreError::LostClaim(_))));
    assert!(deliveries(&fixture, &endpoint).await.is_empty(), "the claim is lost");
    // A success that cannot be written whole is not told either: its files are there already.
    let success = success(&id);
    fixture.store.insert_file(&success.files[0]).await.expect("adds");
    fixture.store.finish_succeeded(&held, &success).await.expect_err("a file stands twice");
    assert_eq!(fixture.job(&id).await.status, JobStatus::Running);
    assert!(deliveries(&fixture, &endpoint).await.is_empty(), "in the same transaction");

    let mut bad = job("file-gone");
    bad.status = JobStatus::Failed;
    fixture.store.insert_job(&bad, &[] as &[NewEvent], ANY_NUMBER).await.expect_err("no such file");
    assert!(deliveries(&fixture, &endpoint).await.is_empty());
}

#[tokio::test]
async fn no_endpoint_fills_the_list_of_what_is_due_alone() {
    let fixture = Fixture::sqlite().await;
    let store = &fixture.store;
    let busy = added(&fixture, webhook_endpoint()).await;
    for _ in 0..5 {
        end_a_job(&fixture).await;
    }
    fixture.clock.advance(1);
    let late = added(&fixture, webhook_endpoint()).await;
    let subject = end_a_job(&fixture).await;
    let due = async |for_each_endpoint, limit| -> Vec<(String, String)> {
        let wanted = DueDeliveries {
            limit,
            for_each_endpoint,
            for_each_project: 100,
            ..DueDeliveries::default()
        };
        let due = store.due_webhook_deliveries(&wanted).await.expect("looks");
        due.into_iter().map(|(delivery, endpoint)| (delivery.id, endpoint.id)).collect()
    };
    let mut of_busy: Vec<String> =
        deliveries(&fixture, &busy).await.into_iter().map(|one| one.id).collect();
    of_busy.reverse();
    let of_late = deliveries(&fixture, &late).await.remove(0);
    assert_eq!(of_late.event.subject, subject);
    assert_eq!(
        (of_late.event.kind, of_late.event.created_at),
        (EventType::JobCancelled, START + 1)
    );
    let pair = |id: &String, endpoint: &WebhookEndpoint| (id.clone(), endpoint.id.clone());
    let fair = [pair(&of_busy[0], &busy), pair(&of_late.id, &late), pair(&of_busy[1], &busy)];
    assert_eq!(due(2, 10).await, fair, "in turn, of each the longest overdue first");
    assert_eq!(due(2, 1).await, fair[..1]);
    assert_eq!(due(10, 10).await.len(), 7);

    // One that failed is due again when its time has come, not before.
    let next = Some(START + 5);
    for id in [&of_busy[0], &of_late.id] {
        let attempt = refused(START + 1);
        let recorded = store.record_webhook_attempt(id, &attempt, DeliveryStatus::Pending, next);
        recorded.await.expect("records");
    }
    assert_eq!(due(1, 10).await, [pair(&of_busy[1], &busy)]);
    fixture.clock.advance(4);
    assert_eq!(due(10, 10).await.len(), 7);
    let of_late = deliveries(&fixture, &late).await.remove(0);
    assert_eq!((of_late.attempts, of_late.next_attempt_at), (vec![refused(START + 1)], next));
}

#[tokio::test]
async fn what_was_given_up_stays_so_unless_it_was_delivered_after_all() {
    let fixture = Fixture::sqlite().await;
    let store = &fixture.store;
    let endpoint = added(&fixture, webhook_endpoint()).await;
    end_a_job(&fixture).await;
    end_a_job(&fixture).await;
    let ids: Vec<String> =
        deliveries(&fixture, &endpoint).await.into_iter().map(|one| one.id).collect();
    let only = EventType::JobFailed.as_str().to_owned();
    let change = EndpointChange { event_types: Some(vec![only]), ..Default::default() };
    fixture.clock.advance(3);
    let changed = store.update_webhook_endpoint(&endpoint.project, &endpoint.id, &change).await;
    let changed = changed.expect("changes").expect("it is there");
    assert_eq!(changed.updated_at, START + 3);
    // Attempts that were under way meanwhile.
    let taken = DeliveryAttempt { at: START + 2, status_code: Some(200), error: None };
    for (id, attempt, status, next) in [
        (&ids[0], &refused(START + 2), DeliveryStatus::Pending, Some(START + 9)),
        (&ids[1], &taken, DeliveryStatus::Delivered, None),
    ] {
        store.record_webhook_attempt(id, attempt, status, next).await.expect("records");
    }
    let found = deliveries(&fixture, &endpoint).await;
    let (given_up, delivered) = (&found[0], &found[1]);
    assert_eq!((given_up.status, given_up.next_attempt_at), (DeliveryStatus::Failed, None));
    assert_eq!(given_up.attempts.len(), 1, "the reason");
    assert_eq!(delivered.status, DeliveryStatus::Delivered);
    assert_eq!(delivered.attempts.len(), 2);
    let all = DueDeliveries {
        limit: 9,
        for_each_endpoint: 9,
        for_each_project: 9,
        ..DueDeliveries::default()
    };
    assert!(store.due_webhook_deliveries(&all).await.expect("looks").is_empty());
}

#[tokio::test]
async fn old_deliveries_go_when_they_have_come_to_an_end() {
    let fixture = Fixture::sqlite().await;
    let store = &fixture.store;
    let endpoint = added(&fixture, webhook_endpoint()).await;
    end_a_job(&fixture).await;
    end_a_job(&fixture).await;
    let [pending, ended] = &deliveries(&fixture, &endpoint).await[..] else { panic!("two") };
    let attempt = refused(START);
    let record = store.record_webhook_attempt(&ended.id, &attempt, DeliveryStatus::Failed, None);
    record.await.expect("records");
    fixture.clock.advance(100);
    assert_eq!(store.remove_old_webhook_deliveries(100).await.expect("looks"), 0);
    assert_eq!(store.remove_old_webhook_deliveries(99).await.expect("removes"), 1);
    assert_eq!(deliveries(&fixture, &endpoint).await, std::slice::from_ref(pending));
    // Nothing is left of an endpoint that is deleted, and an attempt that was under way says nothing.
    assert!(store.delete_webhook_endpoint(&endpoint.project, &endpoint.id).await.expect("deletes"));
    let taken = DeliveryAttempt { at: START, status_code: Some(200), error: None };
    let record = store.record_webhook_attempt(&pending.id, &taken, DeliveryStatus::Delivered, None);
    record.await.expect("there is nothing to record");
    assert!(deliveries(&fixture, &endpoint).await.is_empty());
}
