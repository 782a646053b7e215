//! What every store behind the trait promises. Written against `dyn Store`; a second database is
//! checked by running the same functions over it.

use std::collections::BTreeMap;

use hone::domain::api_key::KeyDigest;
use hone::domain::error_code::ErrorCode;
use hone::domain::file::{FilePurpose, FileRecord};
use hone::domain::ids;
use hone::domain::job::{EventKind, EventLevel, Job, JobError, JobStatus, NewEvent, StepMetrics};
use hone::domain::project::Project;
use hone::domain::upload::{Upload, UploadPart, UploadStatus};
use hone::store::{
    AddPartOutcome, CancelOutcome, CancelUploadOutcome, Claim, CompleteUploadOutcome,
    DeleteFileOutcome, DeleteModelOutcome, IdempotencyKey, MetadataFilter, NewCheckpoint, Order,
    PageRequest, PauseOutcome, ReplayedRequest, ResumeOutcome, RevokeOutcome, Store, StoreError,
};

use crate::support::store::{
    ANY_NUMBER, Fixture, START, api_key, checkpoint, file, first, job, metrics, resolved, success,
    without_events,
};

fn note(text: &str) -> NewEvent {
    NewEvent::message(EventLevel::Info, text)
}

fn out_of_memory() -> JobError {
    JobError { code: ErrorCode::OutOfMemory, message: "no memory left".to_owned(), param: None }
}

fn is_lost(result: Result<impl Sized, StoreError>) -> bool {
    matches!(result, Err(StoreError::LostClaim(_)))
}

#[tokio::test]
async fn a_job_is_read_as_it_was_written() {
    let fixture = Fixture::sqlite().await;
    let training_file = fixture.add_file().await;
    let validation_file = fixture.add_file().await;
    let mut job = job(&training_file);
    job.validation_file = Some(validation_file);
    job.metadata = Some(BTreeMap::from([("team".to_owned(), "blue \"1\"\n".to_owned())]));
    job.hyperparameters.learning_rate = Some(3e-4);
    fixture
        .store
        .insert_job(&job, &[note("Created fine-tuning job")], ANY_NUMBER)
        .await
        .expect("added");
    assert_eq!(fixture.job(&job.id).await, job);

    let events = fixture.store.list_events(&job.id, &first(10)).await.expect("lists");
    assert_eq!(events.items.len(), 1);
    assert_eq!(events.items[0].event, note("Created fine-tuning job"));
    assert_eq!((events.items[0].sequence, events.items[0].created_at), (1, START));
}

#[tokio::test]
async fn a_job_with_bad_data_may_have_failed_from_the_start() {
    let fixture = Fixture::sqlite().await;
    let mut job = job(&fixture.add_file().await);
    job.status = JobStatus::Failed;
    job.finished_at = Some(START);
    job.error = Some(out_of_memory());
    fixture.store.insert_job(&job, &[], ANY_NUMBER).await.expect("added");
    assert_eq!(fixture.job(&job.id).await, job);
    assert!(fixture.store.claim("tests", 60).await.expect("looks").is_none());
}

#[tokio::test]
async fn a_job_cannot_name_a_file_that_is_gone() {
    let fixture = Fixture::sqlite().await;
    let training_file = fixture.add_file().await;
    let mut job = job(&training_file);
    job.validation_file = Some("file-gone".to_owned());
    let refused = fixture.store.insert_job(&job, &[], ANY_NUMBER).await;
    assert!(matches!(refused, Err(StoreError::MissingFile(id)) if id == "file-gone"));
    assert!(fixture.store.job(&job.id).await.expect("reads").is_none());
}

#[tokio::test]
async fn a_request_with_a_name_adds_its_job_once() {
    let fixture = Fixture::sqlite().await;
    let store = &fixture.store;
    let request = IdempotencyKey {
        project: Project::default(),
        key: "mine".to_owned(),
        digest: "a".to_owned(),
    };
    assert_eq!(store.earlier_request(&request).await.expect("looks"), None);
    let first = job(&fixture.add_file().await);
    let added =
        store.insert_job_once(&first, &[note("made")], &request, ANY_NUMBER).await.expect("adds");
    assert_eq!(added, None);
    assert_eq!(fixture.event_sequences(&first.id).await, [1]);

    let second = job(&first.training_file);
    let same = Some(ReplayedRequest::Same(Box::new(first.clone())));
    assert_eq!(store.earlier_request(&request).await.expect("looks"), same);
    let again = store.insert_job_once(&second, &[], &request, ANY_NUMBER).await.expect("looks");
    assert_eq!(again, same);
    let other = IdempotencyKey { digest: "b".to_owned(), ..request };
    let refused = store.insert_job_once(&second, &[], &other, ANY_NUMBER).await.expect("looks");
    assert_eq!(refused, Some(ReplayedRequest::Other));
    assert!(store.job(&second.id).await.expect("reads").is_none());

    let mut broken = job("file-gone");
    let unused = IdempotencyKey {
        project: Project::default(),
        key: "unused".to_owned(),
        digest: "a".to_owned(),
    };
    assert!(store.insert_job_once(&broken, &[], &unused, ANY_NUMBER).await.is_err());
    broken.training_file = first.training_file;
    let added = store.insert_job_once(&broken, &[], &unused, ANY_NUMBER).await.expect("adds");
    assert_eq!(added, None, "a request that failed has not used up its name");
}

#[tokio::test]
async fn a_project_lists_its_own_and_its_jobs_take_its_own() {
    let fixture = Fixture::sqlite().await;
    let store = &fixture.store;
    let ours: Project = "team-a".parse().expect("a name");
    let our_file = FileRecord { project: ours.clone(), ..file(FilePurpose::FineTune) };
    store.insert_file(&our_file).await.expect("adds");
    let their_job_id = fixture.add_job().await;
    let their_file_id = fixture.job(&their_job_id).await.training_file;

    let foreign = Job { project: ours.clone(), ..job(&their_file_id) };
    let refused = store.insert_job(&foreign, &[], ANY_NUMBER).await;
    assert!(matches!(refused, Err(StoreError::MissingFile(id)) if id == their_file_id));
    let our_job = Job { project: ours.clone(), ..job(&our_file.id) };
    store.insert_job(&our_job, &[], ANY_NUMBER).await.expect("adds");
    assert_eq!(fixture.job(&our_job.id).await, our_job);

    let any = MetadataFilter::Pairs(BTreeMap::new());
    let jobs = store.list_jobs(&ours, &any, &first(10)).await.expect("lists").items;
    assert_eq!(jobs, std::slice::from_ref(&our_job));
    let files = store.list_files(&ours, None, Order::Ascending, &first(10)).await.expect("lists");
    assert_eq!(files.items, [our_file]);
    let their_deleted_file = file(FilePurpose::FineTune);
    store.insert_file(&their_deleted_file).await.expect("adds");
    store.delete_file(&their_deleted_file.id).await.expect("deletes");
    let after = |id: &str| PageRequest { after: Some(id.to_owned()), limit: 10 };
    let unknown = [
        store.list_jobs(&ours, &any, &after(&their_job_id)).await.err(),
        store.list_files(&ours, None, Order::Ascending, &after(&their_file_id)).await.err(),
        store.list_files(&ours, None, Order::Ascending, &after(&their_deleted_file.id)).await.err(),
    ];
    for error in unknown {
        assert!(matches!(error, Some(StoreError::UnknownCursor(_))), "{error:?}");
    }

    let (claim, _theirs) = fixture.claim().await;
    let their_success = success(&claim.job_id);
    store.finish_succeeded(&claim, &their_success).await.expect("finishes");
    assert!(store.list_models(&ours).await.expect("lists").is_empty());
    let from_theirs = Job {
        id: ids::new_job_id(),
        continue_from: Some(their_success.model.id.clone()),
        ..our_job
    };
    let refused = store.insert_job(&from_theirs, &[], ANY_NUMBER).await;
    assert!(matches!(refused, Err(StoreError::MissingModel(_))), "{refused:?}");
}

#[tokio::test]
async fn a_project_has_no_more_waiting_jobs_than_it_may() {
    let fixture = Fixture::sqlite().await;
    let store = &fixture.store;
    let file_id = fixture.add_file().await;
    let mut outcomes = Vec::new();
    for _ in 0..8 {
        let (store, job) = (store.clone(), job(&file_id));
        outcomes.push(tokio::spawn(async move { store.insert_job(&job, &[], 3).await }));
    }
    let mut added = 0;
    for outcome in outcomes {
        match outcome.await.expect("no panic") {
            Ok(()) => added += 1,
            Err(StoreError::QueueFull(3)) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(added, 3, "however many come at once");
    let mut failed = job(&file_id);
    (failed.status, failed.finished_at) = (JobStatus::Failed, Some(START));
    failed.error = Some(out_of_memory());
    store.insert_job(&failed, &[], 3).await.expect("it does not wait");
    fixture.claim().await;
    store.insert_job(&job(&file_id), &[], 3).await.expect("one has begun");
    let refused = store.insert_job(&job(&file_id), &[], 3).await;
    assert!(matches!(refused, Err(StoreError::QueueFull(3))));
}

#[tokio::test]
async fn a_key_is_found_by_its_digest_and_known_after_it_is_revoked() {
    let fixture = Fixture::sqlite().await;
    let store = &fixture.store;
    assert!(!store.has_api_keys().await.expect("looks"));
    let (key, digest) = api_key("team-a");
    let (other, other_digest) = api_key("team-b");
    store.insert_api_key(&key, &digest).await.expect("adds");
    store.insert_api_key(&other, &other_digest).await.expect("adds");
    assert!(store.insert_api_key(&api_key("team-c").0, &digest).await.is_err(), "digests differ");
    assert_eq!(store.api_key(&digest).await.expect("reads"), Some(key.clone()));
    assert_eq!(store.api_key(&KeyDigest::of("none")).await.expect("reads"), None);
    assert_eq!(store.list_api_keys().await.expect("lists"), [key.clone(), other.clone()]);

    fixture.clock.advance(5);
    let mut revoked = key.clone();
    revoked.revoked_at = Some(START + 5);
    let outcome = store.revoke_api_key(&key.id).await.expect("revokes");
    assert_eq!(outcome, RevokeOutcome::Revoked(revoked.clone()));
    fixture.clock.advance(5);
    let outcome = store.revoke_api_key(&key.id).await.expect("looks");
    assert_eq!(outcome, RevokeOutcome::AlreadyRevoked(revoked.clone()));
    assert_eq!(store.api_key(&digest).await.expect("reads"), Some(revoked));
    assert_eq!(store.api_key(&other_digest).await.expect("reads"), Some(other));
    assert_eq!(store.revoke_api_key("key_none").await.expect("looks"), RevokeOutcome::NotFound);
    assert!(store.has_api_keys().await.expect("looks"));
}

#[tokio::test]
async fn files_page_without_gaps_while_others_are_added() {
    let fixture = Fixture::sqlite().await;
    let mut before = Vec::new();
    for _ in 0..7 {
        before.push(fixture.add_file().await);
    }
    for order in [Order::Descending, Order::Ascending] {
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let request = PageRequest { after, limit: 2 };
            let page = fixture
                .store
                .list_files(&Project::default(), None, order, &request)
                .await
                .expect("lists");
            seen.extend(page.items.iter().map(|file| file.id.clone()));
            after = seen.last().cloned();
            if !page.has_more || seen.len() >= 7 {
                break;
            }
            fixture.add_file().await;
        }
        if order == Order::Descending {
            seen.reverse();
        }
        assert_eq!(seen[..7], before, "{order:?}");
    }
}

#[tokio::test]
async fn a_full_last_page_does_not_promise_another() {
    let fixture = Fixture::sqlite().await;
    fixture.add_file().await;
    fixture.add_file().await;
    let page = fixture
        .store
        .list_files(&Project::default(), None, Order::Descending, &first(2))
        .await
        .expect("lists");
    assert_eq!((page.items.len(), page.has_more), (2, false));
    let page = fixture
        .store
        .list_files(&Project::default(), None, Order::Descending, &first(1))
        .await
        .expect("lists");
    assert_eq!((page.items.len(), page.has_more), (1, true));
}

#[tokio::test]
async fn files_are_listed_by_purpose() {
    let fixture = Fixture::sqlite().await;
    let wanted = file(FilePurpose::UserData);
    fixture.add_file().await;
    fixture.store.insert_file(&wanted).await.expect("added");
    let page = fixture
        .store
        .list_files(&Project::default(), Some(FilePurpose::UserData), Order::Ascending, &first(10))
        .await
        .expect("lists");
    assert_eq!(page.items, [wanted]);
}

#[tokio::test]
async fn an_unknown_cursor_is_said_and_not_taken_for_the_end() {
    let fixture = Fixture::sqlite().await;
    let mine = fixture.add_job().await;
    let other_training = fixture.add_file().await;
    let other = job(&other_training);
    fixture.store.insert_job(&other, &[note("one")], ANY_NUMBER).await.expect("added");
    let of_other = fixture.store.list_events(&other.id, &first(1)).await.expect("lists");
    let foreign_event = of_other.items[0].id.clone();

    let unknown = PageRequest { after: Some("nothing".to_owned()), limit: 5 };
    let foreign = PageRequest { after: Some(foreign_event), limit: 5 };
    let store = &fixture.store;
    let none = MetadataFilter::Pairs(BTreeMap::new());
    let errors = [
        store.list_files(&Project::default(), None, Order::Descending, &unknown).await.err(),
        store.list_jobs(&Project::default(), &none, &unknown).await.err(),
        store.list_events(&mine, &unknown).await.err(),
        store.list_events(&mine, &foreign).await.err(),
        store.list_checkpoints(&mine, &unknown).await.err(),
    ];
    for error in errors {
        assert!(matches!(error, Some(StoreError::UnknownCursor(_))), "{error:?}");
    }
}

#[tokio::test]
async fn jobs_are_found_by_all_pairs_of_their_metadata() {
    let fixture = Fixture::sqlite().await;
    let training_file = fixture.add_file().await;
    let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let mut ids = Vec::new();
    for metadata in [
        None,
        Some(pairs(&[("team", "blue")])),
        Some(pairs(&[("team", "blue"), ("ki\"nd\n", "ä")])),
        Some(pairs(&[("team", "red"), ("empty", "")])),
    ] {
        let mut job = job(&training_file);
        job.metadata = metadata;
        fixture.store.insert_job(&job, &[], ANY_NUMBER).await.expect("added");
        ids.push(job.id);
    }
    type Pairs = &'static [(&'static str, &'static str)];
    let cases: [(Pairs, &[usize]); 6] = [
        (&[], &[3, 2, 1, 0]),
        (&[("team", "blue")], &[2, 1]),
        (&[("team", "blue"), ("ki\"nd\n", "ä")], &[2]),
        (&[("empty", "")], &[3]),
        (&[("team", "")], &[]),
        (&[("blue", "team")], &[]),
    ];
    for (wanted, expected) in cases {
        let page = fixture
            .store
            .list_jobs(&Project::default(), &MetadataFilter::Pairs(pairs(wanted)), &first(10))
            .await
            .expect("lists");
        let found: Vec<&str> = page.items.iter().map(|job| job.id.as_str()).collect();
        let expected: Vec<&str> = expected.iter().map(|index| ids[*index].as_str()).collect();
        assert_eq!(found, expected, "{wanted:?}");
    }
    let without =
        fixture.store.list_jobs(&Project::default(), &MetadataFilter::Absent, &first(10)).await;
    let found: Vec<String> = without.expect("lists").items.into_iter().map(|job| job.id).collect();
    assert_eq!(found, ids[..1]);
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_at_once_and_only_once() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    fixture.clock.advance(5);
    let outcome = fixture.store.request_cancel(&id).await.expect("asks");
    let Some(CancelOutcome::Cancelled(job)) = outcome else { panic!("{outcome:?}") };
    assert_eq!((job.status, job.finished_at), (JobStatus::Cancelled, Some(START + 5)));
    let again = fixture.store.request_cancel(&id).await.expect("asks");
    assert_eq!(again, Some(CancelOutcome::AlreadyCancelled(job)));
    assert!(fixture.store.claim("tests", 60).await.expect("looks").is_none());
    assert_eq!(fixture.store.request_cancel("ftjob-none").await.expect("asks"), None);
}

#[tokio::test]
async fn the_wish_to_cancel_reaches_the_executor_with_its_heartbeat() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    let (claim, _job) = fixture.claim().await;
    assert!(!fixture.store.heartbeat(&claim, 60).await.expect("beats").cancel_requested);
    let outcome = fixture.store.request_cancel(&id).await.expect("asks");
    let Some(CancelOutcome::Requested(job)) = outcome else { panic!("{outcome:?}") };
    assert_eq!((job.status, job.cancel_requested), (JobStatus::Running, true));
    assert!(fixture.store.heartbeat(&claim, 60).await.expect("beats").cancel_requested);
    fixture.store.finish_cancelled(&claim).await.expect("ends");
    assert_eq!(fixture.job(&id).await.status, JobStatus::Cancelled);
    assert!(is_lost(fixture.store.heartbeat(&claim, 60).await));
}

#[tokio::test]
async fn a_job_that_has_ended_cannot_be_cancelled() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    let (claim, _job) = fixture.claim().await;
    fixture.store.finish_failed(&claim, &out_of_memory(), &[]).await.expect("ends");
    let outcome = fixture.store.request_cancel(&id).await.expect("asks");
    let Some(CancelOutcome::TooLate(job)) = outcome else { panic!("{outcome:?}") };
    assert_eq!((job.status, job.error), (JobStatus::Failed, Some(out_of_memory())));
    assert!(!job.cancel_requested);
}

#[tokio::test]
async fn a_waiting_job_pauses_at_once_and_waits_again_in_its_old_place() {
    let fixture = Fixture::sqlite().await;
    let older = fixture.add_job().await;
    let newer = fixture.add_job().await;
    let store = &fixture.store;
    let outcome = store.request_pause(&older, &[note("pause")]).await.expect("asks");
    let Some(PauseOutcome::Paused(job)) = outcome else { panic!("{outcome:?}") };
    assert_eq!((job.status, job.pause_requested), (JobStatus::Paused, false));
    let again = store.request_pause(&older, &[note("pause")]).await.expect("asks");
    assert_eq!(again, Some(PauseOutcome::AlreadyPaused(job)));
    assert_eq!(fixture.claim().await.1.id, newer, "the device goes on to the next job");
    assert!(store.claim("tests", 60).await.expect("looks").is_none());

    let outcome = store.resume(&older, &[note("resume")]).await.expect("asks");
    let Some(ResumeOutcome::Resumed(job)) = outcome else { panic!("{outcome:?}") };
    assert_eq!(job.status, JobStatus::Queued);
    let again = store.resume(&older, &[note("resume")]).await.expect("asks");
    assert_eq!(again, Some(ResumeOutcome::NotPaused(job)));
    // The pause was asked for and there, and withdrawn.
    assert_eq!(
        fixture.event_sequences(&older).await,
        [1, 2, 3],
        "what changes nothing says nothing"
    );
    let even_newer = fixture.add_job().await;
    assert_eq!(fixture.claim().await.1.id, older);
    assert_eq!(fixture.claim().await.1.id, even_newer);
    assert_eq!(store.request_pause("ftjob-none", &[]).await.expect("asks"), None);
    assert_eq!(store.resume("ftjob-none", &[]).await.expect("asks"), None);
}

#[tokio::test]
async fn the_wish_to_pause_reaches_the_executor_and_is_fulfilled_when_the_job_is_given_back() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    let store = &fixture.store;
    let (claim, _job) = fixture.claim().await;
    assert!(!store.heartbeat(&claim, 60).await.expect("beats").pause_requested);
    for _ in 0..2 {
        let outcome = store.request_pause(&id, &[note("pause")]).await.expect("asks");
        let Some(PauseOutcome::Requested(job)) = outcome else { panic!("{outcome:?}") };
        assert_eq!((job.status, job.pause_requested), (JobStatus::Running, true));
    }
    assert!(store.heartbeat(&claim, 60).await.expect("beats").pause_requested);
    store.release(&claim, &[note("paused")]).await.expect("gives back");
    let job = fixture.job(&id).await;
    assert_eq!((job.status, job.attempt, job.pause_requested), (JobStatus::Paused, 0, false));
    assert!(is_lost(store.heartbeat(&claim, 60).await));
    assert_eq!(fixture.event_sequences(&id).await, [1, 2]);
}

#[tokio::test]
async fn a_pause_that_is_withdrawn_in_time_lets_the_job_wait() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    let store = &fixture.store;
    let (claim, _job) = fixture.claim().await;
    store.request_pause(&id, &[]).await.expect("asks");
    let outcome = store.resume(&id, &[]).await.expect("asks");
    let Some(ResumeOutcome::Resumed(job)) = outcome else { panic!("{outcome:?}") };
    assert_eq!((job.status, job.pause_requested), (JobStatus::Running, false));
    assert!(!store.heartbeat(&claim, 60).await.expect("beats").pause_requested);
    store.release(&claim, &[]).await.expect("gives back");
    assert_eq!(fixture.job(&id).await.status, JobStatus::Queued);
}

#[tokio::test]
async fn a_pause_holds_through_crashes_of_the_trainer_and_of_the_server() {
    let fixture = Fixture::sqlite().await;
    let ids = [fixture.add_job().await, fixture.add_job().await];
    let store = &fixture.store;
    let (claim, _job) = fixture.claim().await;
    fixture.claim().await;
    for id in &ids {
        store.request_pause(id, &[]).await.expect("asks");
    }
    store.retry(&claim, &[]).await.expect("gives back");
    let requeued = store.requeue_orphans(&[note("restarted")]).await.expect("requeues");
    assert!(requeued.is_empty());
    let attempts = [1, 0];
    for (id, attempt) in ids.iter().zip(attempts) {
        let job = fixture.job(id).await;
        assert_eq!((job.status, job.attempt), (JobStatus::Paused, attempt));
    }
    store.requeue_orphans(&[]).await.expect("requeues");
    assert_eq!(fixture.job(&ids[0]).await.status, JobStatus::Paused, "a restart changes nothing");
}

#[tokio::test]
async fn an_end_or_a_cancel_outweighs_a_pause() {
    let fixture = Fixture::sqlite().await;
    let ended = fixture.add_job().await;
    let cancelled = fixture.add_job().await;
    let paused = fixture.add_job().await;
    let store = &fixture.store;

    // The pause comes while the last step is done.
    let (claim, _job) = fixture.claim().await;
    store.request_pause(&ended, &[]).await.expect("asks");
    store.finish_succeeded(&claim, &success(&ended)).await.expect("ends");
    let job = fixture.job(&ended).await;
    assert_eq!((job.status, job.pause_requested), (JobStatus::Succeeded, false));
    let refused = store.request_pause(&ended, &[]).await.expect("asks");
    assert_eq!(refused, Some(PauseOutcome::Refused(job.clone())));
    assert_eq!(store.resume(&ended, &[]).await.expect("asks"), Some(ResumeOutcome::Refused(job)));

    let (claim, _job) = fixture.claim().await;
    store.request_pause(&cancelled, &[]).await.expect("asks");
    store.request_cancel(&cancelled).await.expect("asks");
    let reply = store.heartbeat(&claim, 60).await.expect("beats");
    assert!(reply.cancel_requested && reply.pause_requested);
    let outcome = store.request_pause(&cancelled, &[]).await.expect("asks");
    assert!(matches!(outcome, Some(PauseOutcome::Refused(_))), "{outcome:?}");
    let outcome = store.resume(&cancelled, &[]).await.expect("asks");
    assert!(matches!(outcome, Some(ResumeOutcome::Refused(_))), "{outcome:?}");
    store.release(&claim, &[]).await.expect("gives back");
    assert_eq!(fixture.job(&cancelled).await.status, JobStatus::Cancelled);

    store.request_pause(&paused, &[]).await.expect("asks");
    let outcome = store.request_cancel(&paused).await.expect("asks");
    assert!(matches!(outcome, Some(CancelOutcome::Cancelled(_))), "{outcome:?}");
}

#[tokio::test]
async fn the_oldest_job_is_claimed_first_and_by_one_only() {
    let fixture = Fixture::sqlite().await;
    let older = fixture.add_job().await;
    let newer = fixture.add_job().await;
    let (first_claim, job) = fixture.claim().await;
    assert_eq!((&first_claim.job_id, first_claim.epoch), (&older, 1));
    assert_eq!((job.status, job.attempt), (JobStatus::Running, 1));
    let (second_claim, _job) = fixture.claim().await;
    assert_eq!(second_claim.job_id, newer);
    assert!(fixture.store.claim("tests", 60).await.expect("looks").is_none());
}

#[tokio::test]
async fn a_claim_lasts_as_long_as_its_lease_is_renewed() {
    let fixture = Fixture::sqlite().await;
    fixture.add_job().await;
    let (claim, _job) = fixture.claim().await;
    fixture.clock.advance(59);
    assert!(fixture.store.claim("other", 60).await.expect("looks").is_none());
    fixture.store.heartbeat(&claim, 60).await.expect("renews");
    fixture.clock.advance(59);
    assert!(fixture.store.claim("other", 60).await.expect("looks").is_none());
    fixture.clock.advance(1);
    let taken = fixture.store.claim("other", 60).await.expect("looks").expect("the lease ran out");
    assert_eq!((taken.0.job_id, taken.0.epoch), (claim.job_id.clone(), claim.epoch + 1));
    assert_eq!(taken.1.attempt, 2);
}

#[tokio::test]
async fn an_executor_that_lost_its_claim_can_write_nothing() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    let (lost, _job) = fixture.claim().await;
    fixture.clock.advance(61);
    let (held, _job) = fixture.claim().await;
    let before = fixture.job(&id).await;
    let events = [note("from the past")];
    let (late_checkpoint, late_model, late_files) = checkpoint(&id, 1);
    let late_success = success(&id);

    let store = &fixture.store;
    assert!(is_lost(store.heartbeat(&lost, 60).await));
    assert!(is_lost(store.append_events(&lost, &events).await));
    assert!(is_lost(store.record_resolved(&lost, &resolved(), 20, &events).await));
    assert!(is_lost(store.record_progress(&lost, &metrics(3), None, &events).await));
    let added = store
        .add_checkpoint(
            &lost,
            &NewCheckpoint {
                checkpoint: &late_checkpoint,
                model: &late_model,
                files: &late_files,
                events: &events,
            },
        )
        .await;
    assert!(is_lost(added));
    assert!(is_lost(store.finish_succeeded(&lost, &late_success).await));
    assert!(is_lost(store.finish_failed(&lost, &out_of_memory(), &events).await));
    assert!(is_lost(store.finish_cancelled(&lost).await));
    assert!(is_lost(store.release(&lost, &events).await));
    assert!(is_lost(store.retry(&lost, &events).await));

    assert_eq!(fixture.job(&id).await, before);
    assert!(fixture.event_sequences(&id).await.is_empty());
    assert!(store.model(&late_model.id).await.expect("reads").is_none());
    assert!(store.file(&late_files[0].id).await.expect("reads").is_none());
    assert!(store.file(&late_success.files[0].id).await.expect("reads").is_none());
    store.append_events(&held, &events).await.expect("the claim that holds can write");
}

#[tokio::test]
async fn a_job_given_back_can_no_longer_be_written_to() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    let (claim, _job) = fixture.claim().await;
    fixture.store.release(&claim, &[]).await.expect("gives back");
    assert!(is_lost(fixture.store.append_events(&claim, &[note("late")]).await));
    assert!(is_lost(fixture.store.finish_succeeded(&claim, &success(&id)).await));
    assert_eq!(fixture.job(&id).await.status, JobStatus::Queued);
}

#[tokio::test]
async fn a_crash_counts_as_an_attempt_and_a_shutdown_does_not() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    let (claim, job) = fixture.claim().await;
    assert_eq!(job.attempt, 1);
    fixture.store.release(&claim, &[note("shutdown")]).await.expect("gives back");
    assert_eq!(fixture.job(&id).await.attempt, 0);
    let (claim, job) = fixture.claim().await;
    assert_eq!((job.attempt, claim.epoch), (1, 2));
    fixture.store.retry(&claim, &[note("crash")]).await.expect("gives back");
    let waiting = fixture.job(&id).await;
    assert_eq!((waiting.attempt, waiting.status), (1, JobStatus::Queued));
    assert_eq!(fixture.claim().await.1.attempt, 2);
    assert_eq!(fixture.event_sequences(&id).await, [1, 2]);
}

#[tokio::test]
async fn a_job_whose_user_wants_its_end_is_cancelled_when_given_back() {
    let fixture = Fixture::sqlite().await;
    let ids = [fixture.add_job().await, fixture.add_job().await, fixture.add_job().await];
    let (first_claim, _job) = fixture.claim().await;
    let (second_claim, _job) = fixture.claim().await;
    fixture.claim().await;
    for id in &ids {
        fixture.store.request_cancel(id).await.expect("asks");
    }
    fixture.store.release(&first_claim, &[]).await.expect("gives back");
    fixture.store.retry(&second_claim, &[]).await.expect("gives back");
    let requeued = fixture.store.requeue_orphans(&[]).await.expect("looks");
    assert!(requeued.is_empty());
    for id in &ids {
        assert_eq!(fixture.job(id).await.status, JobStatus::Cancelled);
        assert_eq!(fixture.event_sequences(id).await, [1], "each says that it has ended");
    }
}

#[tokio::test]
async fn jobs_of_a_dead_server_wait_again_in_their_old_place() {
    let fixture = Fixture::sqlite().await;
    let older = fixture.add_job().await;
    let newer = fixture.add_job().await;
    let (claim, _job) = fixture.claim().await;
    fixture
        .store
        .record_progress(&claim, &metrics(4), Some(START + 100), &[])
        .await
        .expect("records");
    let requeued = fixture.store.requeue_orphans(&[note("restarted")]).await.expect("requeues");
    assert_eq!(requeued, std::slice::from_ref(&older));
    let waiting = fixture.job(&older).await;
    assert_eq!((waiting.status, waiting.attempt), (JobStatus::Queued, 0));
    assert_eq!((waiting.trained_steps, waiting.estimated_finish), (4, None));
    assert_eq!(fixture.event_sequences(&older).await, [1]);
    assert!(fixture.event_sequences(&newer).await.is_empty());
    let (again, _job) = fixture.claim().await;
    assert_eq!((again.job_id, again.epoch), (older, 2));
    assert!(is_lost(fixture.store.append_events(&claim, &[note("zombie")]).await));
}

#[tokio::test]
async fn progress_is_seen_on_the_job() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    let (claim, _job) = fixture.claim().await;
    let store = &fixture.store;
    store.record_resolved(&claim, &resolved(), 20, &[note("why")]).await.expect("records");
    let event = NewEvent {
        level: EventLevel::Warn,
        kind: EventKind::Metrics,
        message: "Step 3/20".to_owned(),
        data: Some(serde_json::json!({"step": 3, "train_loss": 0.5})),
    };
    store
        .record_progress(&claim, &metrics(3), Some(START + 9), std::slice::from_ref(&event))
        .await
        .expect("records");
    let job = fixture.job(&id).await;
    assert_eq!((job.resolved, job.total_steps), (Some(resolved()), Some(20)));
    assert_eq!((job.trained_steps, job.estimated_finish), (3, Some(START + 9)));
    let newest = store.list_events(&id, &first(1)).await.expect("lists");
    assert_eq!((&newest.items[0].event, newest.has_more), (&event, true));
}

#[tokio::test]
async fn a_step_that_ran_twice_is_counted_once_as_it_ran_last() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    let (claim, _job) = fixture.claim().await;
    let ran = async |step: u64, loss: f64| {
        let metrics = StepMetrics { step, train_loss: loss, ..metrics(step) };
        let event = NewEvent {
            level: EventLevel::Info,
            kind: EventKind::Metrics,
            message: format!("step {step}"),
            data: serde_json::to_value(&metrics).ok(),
        };
        let events = [note("between"), event];
        let recorded = fixture.store.record_progress(&claim, &metrics, None, &events).await;
        recorded.expect("recorded");
    };
    for (step, loss) in [(1, 5.0), (2, 4.0), (3, 3.0), (2, 4.5), (3, 3.5), (4, 2.5)] {
        ran(step, loss).await;
    }
    let read = async |after: u64, limit: u32| {
        let page = fixture.store.list_metrics(&id, after, limit).await.expect("lists");
        let losses = page.items.iter().map(|event| {
            let data = event.event.data.as_ref().expect("numbers");
            (data["step"].as_u64().expect("a step"), data["train_loss"].as_f64().expect("a loss"))
        });
        (losses.collect::<Vec<_>>(), page.has_more)
    };
    assert_eq!(read(0, 3).await, (vec![(1, 5.0), (2, 4.5), (3, 3.5)], true));
    assert_eq!(read(3, 3).await, (vec![(4, 2.5)], false));
    assert_eq!(read(u64::MAX, 3).await, (vec![], false));
    let page = fixture.store.list_metrics("ftjob-none", 0, 3).await.expect("lists");
    assert!(page.items.is_empty());
}

#[tokio::test]
async fn a_checkpoint_made_twice_is_kept_once() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    let (claim, _job) = fixture.claim().await;
    let store = &fixture.store;
    let mut kept = Vec::new();
    for step in [10, 20, 30] {
        let added = checkpoint(&id, step);
        assert!(store.add_checkpoint(&claim, &without_events(&added)).await.expect("adds"));
        let (row, _model, _files) = added;
        kept.push(row);
    }
    let (again, model, files) = checkpoint(&id, 20);
    let added = store
        .add_checkpoint(
            &claim,
            &NewCheckpoint {
                checkpoint: &again,
                model: &model,
                files: &files,
                events: &[note("twice")],
            },
        )
        .await
        .expect("same");
    assert!(!added);
    assert!(store.file(&files[0].id).await.expect("reads").is_none());
    assert!(fixture.event_sequences(&id).await.is_empty());

    let page = store.list_checkpoints(&id, &first(2)).await.expect("lists");
    assert_eq!(
        (page.items.as_slice(), page.has_more),
        (&[kept[2].clone(), kept[1].clone()][..], true)
    );
    let rest = PageRequest { after: Some(kept[1].id.clone()), limit: 2 };
    let page = store.list_checkpoints(&id, &rest).await.expect("lists");
    assert_eq!((page.items.as_slice(), page.has_more), (&kept[..1], false));
    assert!(
        store.model(&kept[0].model_name).await.expect("reads").is_some_and(|m| m.is_checkpoint)
    );
    assert!(store.list_models(&Project::default()).await.expect("lists").is_empty());
}

#[tokio::test]
async fn success_is_seen_whole_or_not_at_all() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    let (claim, _job) = fixture.claim().await;
    let store = &fixture.store;

    // The model's weights are not among the files: the last statement fails, and takes all back.
    let mut torn = success(&id);
    torn.files.pop();
    torn.events = vec![note("never seen")];
    assert!(store.finish_succeeded(&claim, &torn).await.is_err());
    let unchanged = fixture.job(&id).await;
    assert_eq!((unchanged.status, unchanged.fine_tuned_model), (JobStatus::Running, None));
    assert!(store.file(&torn.files[0].id).await.expect("reads").is_none());
    assert!(fixture.event_sequences(&id).await.is_empty());

    fixture.clock.advance(30);
    let mut whole = success(&id);
    whole.events = vec![note("New fine-tuned model created"), note("done")];
    store.finish_succeeded(&claim, &whole).await.expect("ends");
    let job = fixture.job(&id).await;
    assert_eq!((job.status, job.finished_at), (JobStatus::Succeeded, Some(START + 30)));
    assert_eq!(job.fine_tuned_model.as_ref(), Some(&whole.model.id));
    assert_eq!(job.result_files, whole.result_files);
    assert_eq!((job.trained_tokens, job.trained_steps), (Some(1234), 20));
    assert_eq!((job.estimated_finish, job.error), (None, None));
    assert_eq!(store.list_models(&Project::default()).await.expect("lists"), [whole.model.clone()]);
    for file in &whole.files {
        assert_eq!(store.file(&file.id).await.expect("reads").as_ref(), Some(file));
    }
    assert_eq!(fixture.event_sequences(&id).await, [1, 2]);
    assert!(is_lost(store.finish_succeeded(&claim, &success(&id)).await), "published once only");
}

#[tokio::test]
async fn a_file_stays_as_long_as_something_needs_it() {
    let fixture = Fixture::sqlite().await;
    let store: &dyn Store = &*fixture.store;
    let training = file(FilePurpose::FineTune);
    let validation = file(FilePurpose::FineTune);
    store.insert_file(&training).await.expect("added");
    store.insert_file(&validation).await.expect("added");
    let mut job = job(&training.id);
    job.validation_file = Some(validation.id.clone());
    store.insert_job(&job, &[], ANY_NUMBER).await.expect("added");

    let in_use = DeleteFileOutcome::UsedByJob(job.id.clone());
    assert_eq!(store.delete_file(&training.id).await.expect("asks"), in_use);
    let (claim, _job) = fixture.claim().await;
    assert_eq!(store.delete_file(&validation.id).await.expect("asks"), in_use);
    let added = checkpoint(&job.id, 10);
    store.add_checkpoint(&claim, &without_events(&added)).await.expect("adds");
    let (_row, checkpoint_model, checkpoint_files) = added;
    let success = success(&job.id);
    store.finish_succeeded(&claim, &success).await.expect("ends");

    let deleted = store.delete_file(&training.id).await.expect("asks");
    assert_eq!(deleted, DeleteFileOutcome::Deleted(Box::new(training.clone())));
    assert_eq!(store.delete_file(&training.id).await.expect("asks"), DeleteFileOutcome::NotFound);
    for (files, model) in
        [(&checkpoint_files, &checkpoint_model.id), (&success.files, &success.model.id)]
    {
        for needed in files {
            let outcome = store.delete_file(&needed.id).await.expect("asks");
            assert_eq!(outcome, DeleteFileOutcome::UsedByModel(model.clone()));
        }
    }
    let mut keys = store.blob_keys().await.expect("lists");
    keys.sort();
    let mut expected: Vec<String> = [&checkpoint_files[..], &success.files[..], &[validation]]
        .concat()
        .into_iter()
        .map(|file| file.blob_key)
        .collect();
    expected.sort();
    assert_eq!(keys, expected);
}

#[tokio::test]
async fn an_expired_file_is_gone_unless_a_job_that_has_not_ended_uses_it() {
    let fixture = Fixture::sqlite().await;
    let store = &fixture.store;
    let expiring =
        |seconds| FileRecord { expires_at: Some(START + seconds), ..file(FilePurpose::FineTune) };
    let (unused, used, validation) = (expiring(10), expiring(10), expiring(20));
    let kept = file(FilePurpose::UserData);
    for file in [&unused, &used, &validation, &kept] {
        store.insert_file(file).await.expect("added");
    }
    let mut user = job(&used.id);
    user.validation_file = Some(validation.id.clone());
    store.insert_job(&user, &[], ANY_NUMBER).await.expect("added");
    let is_there = async |file: &FileRecord| {
        let listed = store
            .list_files(&Project::default(), None, Order::Ascending, &first(10))
            .await
            .expect("lists");
        let found = store.file(&file.id).await.expect("reads");
        assert_eq!(found.is_some(), listed.items.contains(file));
        found.is_some()
    };

    fixture.clock.advance(9);
    assert!(is_there(&unused).await);
    assert!(store.remove_expired_files().await.expect("removes").is_empty());
    fixture.clock.advance(1);
    assert!(!is_there(&unused).await && is_there(&used).await);
    assert_eq!(store.delete_file(&unused.id).await.expect("asks"), DeleteFileOutcome::NotFound);
    let late = job(&unused.id);
    let refused = store.insert_job(&late, &[], ANY_NUMBER).await;
    assert!(matches!(refused, Err(StoreError::MissingFile(id)) if id == unused.id));
    // A page goes on after a file that has expired meanwhile.
    let after = PageRequest { after: Some(unused.id.clone()), limit: 10 };
    let page =
        store.list_files(&Project::default(), None, Order::Ascending, &after).await.expect("lists");
    assert_eq!(page.items, [used.clone(), validation.clone(), kept.clone()]);

    fixture.clock.advance(90);
    assert_eq!(store.remove_expired_files().await.expect("removes"), [unused.blob_key]);
    let (claim, _job) = fixture.claim().await;
    store.request_pause(&user.id, &[]).await.expect("asks");
    store.release(&claim, &[]).await.expect("gives back");
    assert!(is_there(&used).await && is_there(&validation).await, "a paused job needs them too");
    assert!(store.remove_expired_files().await.expect("removes").is_empty());
    store.request_cancel(&user.id).await.expect("asks");
    assert!(!is_there(&used).await && !is_there(&validation).await);
    let mut removed = store.remove_expired_files().await.expect("removes");
    removed.sort();
    let mut expected = [used.blob_key, validation.blob_key];
    expected.sort();
    assert_eq!(removed, expected);
    assert!(is_there(&kept).await);
}

fn upload(bytes: i64) -> Upload {
    Upload {
        project: Project::default(),
        id: ids::new_upload_id(),
        created_at: START,
        expires_at: START + 3600,
        bytes,
        filename: "big.jsonl".to_owned(),
        purpose: FilePurpose::FineTune,
        file_lifetime: Some(7200),
        status: UploadStatus::Pending,
        part_ids: Vec::new(),
        file_id: None,
    }
}

fn upload_part(upload: &Upload, bytes: i64) -> UploadPart {
    let id = ids::new_part_id();
    UploadPart {
        blob_key: format!("parts/{id}"),
        id,
        upload_id: upload.id.clone(),
        created_at: START,
        bytes,
    }
}

#[tokio::test]
async fn an_upload_becomes_a_file_once_and_its_parts_are_handed_back() {
    let fixture = Fixture::sqlite().await;
    let store = &fixture.store;
    let pending = upload(10);
    store.insert_upload(&pending).await.expect("added");
    assert_eq!(store.upload(&pending.id).await.expect("reads"), Some(pending.clone()));
    let parts = [upload_part(&pending, 4), upload_part(&pending, 6), upload_part(&pending, 10)];
    for part in &parts {
        let added = store.add_part(part).await.expect("adds");
        assert_eq!(added, Some(AddPartOutcome::Added));
    }
    let one_too_many = store.add_part(&upload_part(&pending, 1)).await.expect("looks");
    assert_eq!(one_too_many, Some(AddPartOutcome::TooMuch(pending.clone())));
    let mut found = store.upload_parts(&pending.id).await.expect("reads");
    found.sort_by(|one, other| one.id.cmp(&other.id));
    assert_eq!(found, parts);
    assert!(store.blob_keys().await.expect("lists").contains(&parts[2].blob_key));

    // It was begun in time, and ends late.
    fixture.clock.advance(3600);
    let expired = store.upload(&pending.id).await.expect("reads").expect("is there");
    assert_eq!(expired.status, UploadStatus::Expired);
    assert!(store.expire_uploads(1).await.expect("looks").is_empty(), "within the grace");
    let made = file(FilePurpose::FineTune);
    let order = [parts[1].id.clone(), parts[0].id.clone()];
    let outcome = store.complete_upload(&pending.id, &order, &made).await.expect("completes");
    let Some(CompleteUploadOutcome::Completed(completed, mut unneeded)) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((completed.status, &completed.part_ids[..]), (UploadStatus::Completed, &order[..]));
    assert_eq!(completed.file_id.as_ref(), Some(&made.id));
    unneeded.sort();
    assert_eq!(unneeded, parts.clone().map(|part| part.blob_key));
    assert_eq!(store.file(&made.id).await.expect("reads"), Some(made.clone()));

    let again = file(FilePurpose::FineTune);
    let outcome = store.complete_upload(&pending.id, &order, &again).await.expect("looks");
    assert_eq!(outcome, Some(CompleteUploadOutcome::NotPending(completed.clone())));
    assert!(store.file(&again.id).await.expect("reads").is_none());
    let late = store.add_part(&upload_part(&pending, 1)).await.expect("looks");
    assert_eq!(late, Some(AddPartOutcome::NotPending(completed.clone())));
    let outcome = store.cancel_upload(&pending.id).await.expect("looks");
    assert_eq!(outcome, Some(CancelUploadOutcome::NotPending(completed)));
    assert!(store.expire_uploads(0).await.expect("looks").is_empty());
    assert_eq!(store.blob_keys().await.expect("lists"), [made.blob_key]);
}

#[tokio::test]
async fn an_upload_that_ends_otherwise_hands_back_its_parts_once() {
    let fixture = Fixture::sqlite().await;
    let store = &fixture.store;
    let (cancelled, expired) = (upload(10), upload(10));
    let mut keys = Vec::new();
    for upload in [&cancelled, &expired] {
        store.insert_upload(upload).await.expect("added");
        let part = upload_part(upload, 5);
        store.add_part(&part).await.expect("adds");
        keys.push(part.blob_key);
    }
    let outcome = store.cancel_upload(&cancelled.id).await.expect("cancels");
    let Some(CancelUploadOutcome::Cancelled(upload, unneeded)) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((upload.status, &unneeded[..]), (UploadStatus::Cancelled, &keys[..1]));
    let outcome = store.cancel_upload(&cancelled.id).await.expect("looks");
    assert_eq!(outcome, Some(CancelUploadOutcome::AlreadyCancelled(upload)));

    fixture.clock.advance(3600);
    assert!(store.expire_uploads(1).await.expect("looks").is_empty());
    assert_eq!(store.expire_uploads(0).await.expect("expires"), keys[1..]);
    assert!(store.expire_uploads(0).await.expect("looks").is_empty());
    let outcome = store.cancel_upload(&expired.id).await.expect("looks");
    let Some(CancelUploadOutcome::NotPending(upload)) = outcome else { panic!("{outcome:?}") };
    assert_eq!(upload.status, UploadStatus::Expired);

    let unknown = UploadPart { upload_id: "upload_none".to_owned(), ..upload_part(&expired, 1) };
    assert_eq!(store.add_part(&unknown).await.expect("looks"), None);
    assert_eq!(store.cancel_upload("upload_none").await.expect("looks"), None);
    assert_eq!(store.upload("upload_none").await.expect("reads"), None);
}

#[tokio::test]
async fn deleting_a_model_keeps_the_job_and_frees_the_files() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    let (claim, _job) = fixture.claim().await;
    let store = &fixture.store;
    let mut names = Vec::new();
    for step in [10, 20] {
        let added = checkpoint(&id, step);
        store.add_checkpoint(&claim, &without_events(&added)).await.expect("adds");
        let (_row, model, _files) = added;
        names.push(model.id);
    }
    let success = success(&id);
    store.finish_succeeded(&claim, &success).await.expect("ends");

    let deleted = store.delete_model(&names[0]).await.expect("deletes");
    assert_eq!(deleted, DeleteModelOutcome::Deleted, "a checkpoint by its own name");
    let left = store.list_checkpoints(&id, &first(10)).await.expect("lists");
    assert_eq!(left.items.iter().map(|row| row.step).collect::<Vec<_>>(), [20]);
    assert!(store.model(&success.model.id).await.expect("reads").is_some());

    let deleted = store.delete_model(&success.model.id).await.expect("deletes");
    assert_eq!(deleted, DeleteModelOutcome::Deleted);
    let again = store.delete_model(&success.model.id).await.expect("asks");
    assert_eq!(again, DeleteModelOutcome::NotFound, "only once");
    assert!(store.model(&names[1]).await.expect("reads").is_none(), "its checkpoints go with it");
    let job = fixture.job(&id).await;
    assert_eq!((job.status, job.fine_tuned_model), (JobStatus::Succeeded, Some(success.model.id)));
    assert_eq!(job.result_files, success.result_files);
    let deleted = store.delete_file(&success.files[1].id).await.expect("asks");
    assert_eq!(deleted, DeleteFileOutcome::Deleted(Box::new(success.files[1].clone())));
}

#[tokio::test]
async fn a_model_stays_while_a_job_continues_from_it_or_from_its_checkpoint() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    let (claim, _job) = fixture.claim().await;
    let store = &fixture.store;
    let added = checkpoint(&id, 10);
    store.add_checkpoint(&claim, &without_events(&added)).await.expect("adds");
    let (_row, checkpoint_model, _files) = added;
    let success = success(&id);
    store.finish_succeeded(&claim, &success).await.expect("ends");

    let mut next = job(&fixture.add_file().await);
    next.continue_from = Some("ft:gone".to_owned());
    let refused = store.insert_job(&next, &[], ANY_NUMBER).await;
    assert!(matches!(refused, Err(StoreError::MissingModel(name)) if name == "ft:gone"));
    next.continue_from = Some(checkpoint_model.id.clone());
    store.insert_job(&next, &[], ANY_NUMBER).await.expect("added");
    assert_eq!(fixture.job(&next.id).await.continue_from, next.continue_from);

    let in_use = DeleteModelOutcome::UsedByJob(next.id.clone());
    for name in [&checkpoint_model.id, &success.model.id] {
        assert_eq!(store.delete_model(name).await.expect("asks"), in_use);
    }
    store.request_cancel(&next.id).await.expect("asks");
    let deleted = store.delete_model(&success.model.id).await.expect("asks");
    assert_eq!(deleted, DeleteModelOutcome::Deleted);
}

#[tokio::test]
async fn a_permission_is_of_one_model_and_one_project_and_goes_with_the_model() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    let (claim, _job) = fixture.claim().await;
    let added = checkpoint(&id, 4);
    let store = &fixture.store;
    store.add_checkpoint(&claim, &without_events(&added)).await.expect("added");
    let (_row, model, _files) = added;
    store.finish_succeeded(&claim, &success(&id)).await.expect("ends");
    let (whole, step) = (format!("ft:{id}"), model.id);

    let projects = ["blue", "red"].map(|name| Project::stored(name.to_owned()));
    assert_eq!(store.grant_permissions("ft:none", &projects).await.expect("asks"), None);
    let granted = store.grant_permissions(&step, &projects).await.expect("asks").expect("granted");
    let permitted = async |checkpoint: &str, project: &str| {
        store.is_permitted(checkpoint, &Project::stored(project.to_owned())).await.expect("asks")
    };
    assert!(permitted(&step, "blue").await && permitted(&step, "red").await);
    assert!(!permitted(&step, "green").await && !permitted(&whole, "blue").await);

    fixture.clock.advance(60);
    let again = store.grant_permissions(&step, &projects).await.expect("asks");
    assert_eq!(again.as_ref(), Some(&granted), "time has passed, and nothing has changed");
    assert!(!store.delete_permission(&whole, &granted[0].id).await.expect("asks"));
    assert!(store.delete_permission(&step, &granted[0].id).await.expect("asks"));
    assert!(!permitted(&step, "blue").await && permitted(&step, "red").await);

    store.delete_model(&whole).await.expect("asks");
    assert!(!permitted(&step, "red").await);
    let page = store.list_permissions(&step, None, Order::Ascending, &first(10)).await;
    assert!(page.expect("lists").items.is_empty());
}

#[tokio::test]
async fn a_superseded_checkpoint_goes_with_its_model_and_files_unless_a_job_needs_it() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    let (claim, _job) = fixture.claim().await;
    let store = &fixture.store;
    let mut made = Vec::new();
    for step in [10, 20] {
        let added = checkpoint(&id, step);
        store.add_checkpoint(&claim, &without_events(&added)).await.expect("adds");
        let (_row, model, files) = added;
        made.push((model, files));
    }
    let mut next = job(&fixture.add_file().await);
    next.continue_from = Some(made[1].0.id.clone());
    store.insert_job(&next, &[], ANY_NUMBER).await.expect("added");

    let (model, files) = &made[0];
    let mut keys = store.retain_checkpoints(&claim, &[20], 20).await.expect("removes");
    keys.sort_unstable();
    let mut wanted: Vec<String> = files.iter().map(|file| file.blob_key.clone()).collect();
    wanted.sort_unstable();
    assert_eq!(keys, wanted);
    assert_eq!(store.model(&model.id).await.expect("reads"), None);
    assert_eq!(store.file(&files[0].id).await.expect("reads"), None);
    for through in [10, 20, 30] {
        let keys = store.retain_checkpoints(&claim, &[30], through).await.expect("asks");
        assert!(keys.is_empty(), "{through}: gone, needed, or never there");
    }
    let left = store.list_checkpoints(&id, &first(10)).await.expect("lists");
    assert_eq!(left.items.iter().map(|row| row.step).collect::<Vec<_>>(), [20]);
    let late = Claim { epoch: claim.epoch - 1, ..claim };
    let refused = store.retain_checkpoints(&late, &[], 20).await;
    assert!(matches!(refused, Err(StoreError::LostClaim(_))));
}

#[tokio::test]
async fn a_checkpoint_that_was_removed_does_not_come_back_and_pages_go_on_after_it() {
    let fixture = Fixture::sqlite().await;
    let id = fixture.add_job().await;
    let (claim, _job) = fixture.claim().await;
    let store = &fixture.store;
    for step in [10, 20, 30, 40] {
        let made = checkpoint(&id, step);
        assert!(store.add_checkpoint(&claim, &without_events(&made)).await.expect("adds"));
    }
    let steps = async || {
        let page = store.list_checkpoints(&id, &first(10)).await.expect("lists");
        page.items.iter().map(|row| row.step).collect::<Vec<_>>()
    };
    let page = store.list_checkpoints(&id, &first(10)).await.expect("lists").items;
    // Its user deletes one, training supersedes another.
    let deleted = store.delete_model(&page[1].model_name).await.expect("asks");
    assert_eq!(deleted, DeleteModelOutcome::Deleted);
    store.retain_checkpoints(&claim, &[20, 30, 40], 40).await.expect("removes");
    assert_eq!(steps().await, [40, 20]);
    for step in [10, 30, 40] {
        let again = checkpoint(&id, step);
        assert!(!store.add_checkpoint(&claim, &without_events(&again)).await.expect("asks"));
    }
    assert_eq!(steps().await, [40, 20]);
    // A page begins after one that is gone meanwhile.
    for (gone, wanted) in [(&page[1], vec![20]), (&page[3], vec![])] {
        let after = PageRequest { after: Some(gone.id.clone()), limit: 10 };
        let page = store.list_checkpoints(&id, &after).await.expect("lists");
        assert_eq!(page.items.iter().map(|row| row.step).collect::<Vec<_>>(), wanted);
    }
    // A trainer that continues from step 20 knows nothing of what an earlier one published after it.
    store.retain_checkpoints(&claim, &[20], 20).await.expect("removes nothing");
    assert_eq!(steps().await, [40, 20]);
}

/// Adds a job that waits, of this project.
async fn add_job_of(fixture: &Fixture, project: &str) -> String {
    let mut file = file(FilePurpose::FineTune);
    file.project = Project::stored(project.to_owned());
    fixture.store.insert_file(&file).await.expect("a file is added");
    let mut job = job(&file.id);
    job.project = file.project;
    fixture.store.insert_job(&job, &[], ANY_NUMBER).await.expect("a job is added");
    job.id
}

#[tokio::test]
async fn projects_take_turns_and_each_ones_jobs_keep_their_order() {
    let fixture = Fixture::sqlite().await;
    let store = &fixture.store;
    let mut of_many = Vec::new();
    for _ in 0..25 {
        of_many.push(add_job_of(&fixture, "many").await);
    }
    let of_one = add_job_of(&fixture, "one").await;
    let of_two = [add_job_of(&fixture, "two").await, add_job_of(&fixture, "two").await];
    let mut order = Vec::new();
    for _ in 0..6 {
        let (claim, job) = fixture.claim().await;
        order.push(job.id);
        store.finish_cancelled(&claim).await.expect("ends");
    }
    let wanted =
        [&of_many[0], &of_one, &of_two[0], &of_many[1], &of_two[1], &of_many[2]].map(Clone::clone);
    assert_eq!(order, wanted);

    // A job that was given back has begun, and goes on before another project begins.
    let late = add_job_of(&fixture, "one").await;
    let (claim, begun) = fixture.claim().await;
    assert_eq!(begun.id, late, "its project was claimed from longest ago");
    add_job_of(&fixture, "three").await;
    store.release(&claim, &[]).await.expect("gives back");
    let (claim, again) = fixture.claim().await;
    assert_eq!(again.id, late);
    // One that waits for what others hold lets them begin.
    store.postpone(&claim, 30, &[]).await.expect("postpones");
    let (_claim, next) = fixture.claim().await;
    assert_eq!(next.project.as_str(), "three");
    for _ in 0..22 {
        assert_eq!(fixture.claim().await.1.project.as_str(), "many");
    }
    assert_eq!(store.claim("tests", 60).await.expect("asks"), None, "it is not due yet");
    fixture.clock.advance(31);
    let (_claim, due) = fixture.claim().await;
    assert_eq!((due.id, due.shortage.map(|short| short.count)), (late, Some(1)));
}
