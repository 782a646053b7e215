//! Random sequences of operations on jobs, against a model of the state machine that fits on a
//! page: what the store does and what the model says never differ.

use std::sync::Arc;

use hone::domain::error_code::ErrorCode;
use hone::domain::job::{EventLevel, JobError, JobStatus, NewEvent};
use hone::domain::webhook::EventType;
use hone::store::{
    CachedReply, CancelOutcome, Claim, NewCheckpoint, PageRequest, PauseOutcome, ResumeOutcome,
    StoreError,
};
use proptest::prelude::*;

use crate::support::store::{
    ANY_NUMBER, Fixture, checkpoint, first, job, metrics, success, webhook_endpoint,
};

const LEASE: i64 = 60;

#[derive(Debug, Clone)]
enum Operation {
    Add,
    Claim,
    /// Seconds that pass.
    Wait(i64),
    /// On the job with this number (modulo their count).
    Cancel(usize),
    Pause(usize),
    Resume(usize),
    RequeueOrphans,
    /// On the claim with this number (modulo their count), lost or held.
    Heartbeat(usize),
    Release(usize),
    Retry(usize),
    Append(usize),
    Progress(usize, u64),
    Checkpoint(usize, u64),
    Succeed(usize),
    Fail(usize),
    EndCancelled(usize),
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let index = 0..8_usize;
    let one = prop_oneof![
        3 => Just(Operation::Add),
        4 => Just(Operation::Claim),
        2 => (1..50_i64).prop_map(Operation::Wait),
        1 => index.clone().prop_map(Operation::Cancel),
        2 => index.clone().prop_map(Operation::Pause),
        2 => index.clone().prop_map(Operation::Resume),
        1 => Just(Operation::RequeueOrphans),
        2 => index.clone().prop_map(Operation::Heartbeat),
        1 => index.clone().prop_map(Operation::Release),
        1 => index.clone().prop_map(Operation::Retry),
        2 => index.clone().prop_map(Operation::Append),
        2 => (index.clone(), 1..9_u64).prop_map(|(at, step)| Operation::Progress(at, step)),
        1 => (index.clone(), 1..4_u64).prop_map(|(at, step)| Operation::Checkpoint(at, step)),
        1 => index.clone().prop_map(Operation::Succeed),
        1 => index.clone().prop_map(Operation::Fail),
        1 => index.prop_map(Operation::EndCancelled),
    ];
    prop::collection::vec(one, 1..60)
}

/// What the model knows of a job.
#[derive(Debug)]
struct Expected {
    id: String,
    status: JobStatus,
    cancel_requested: bool,
    pause_requested: bool,
    attempt: u32,
    epoch: i64,
    lease_until: i64,
    events: i64,
    steps: u64,
    checkpoints: Vec<u64>,
}

impl Expected {
    fn end(&mut self, status: JobStatus) {
        self.status = status;
        self.pause_requested = false;
    }
}

#[derive(Default)]
struct Model {
    now: i64,
    jobs: Vec<Expected>,
    /// Every claim ever handed out, with its job's place in `jobs`.
    claims: Vec<(Claim, usize)>,
}

impl Model {
    fn holds(&self, claim: &Claim, at: usize) -> bool {
        self.jobs[at].status == JobStatus::Running && self.jobs[at].epoch == claim.epoch
    }

    fn give_back(&mut self, at: usize, forgiven: bool) {
        let job = &mut self.jobs[at];
        let wishes_pause = std::mem::take(&mut job.pause_requested);
        if job.cancel_requested {
            job.status = JobStatus::Cancelled;
            job.events += 1;
            return;
        }
        job.status = if wishes_pause { JobStatus::Paused } else { JobStatus::Queued };
        if forgiven {
            job.attempt -= 1;
        }
    }
}

fn event() -> [NewEvent; 1] {
    [NewEvent::message(EventLevel::Info, "something happened")]
}

/// The store must refuse a claim exactly when the model says that it is lost.
fn agree<T: std::fmt::Debug>(held: bool, result: Result<T, StoreError>) -> bool {
    match (held, &result) {
        (true, Ok(_)) => true,
        (false, Err(StoreError::LostClaim(_))) => false,
        _ => panic!("held: {held}, but the store says {result:?}"),
    }
}

async fn apply(fixture: &Fixture, model: &mut Model, operation: &Operation, training_file: &str) {
    let store = &fixture.store;
    match operation {
        Operation::Add => {
            let row = job(training_file);
            store.insert_job(&row, &event(), ANY_NUMBER).await.expect("adds");
            model.jobs.push(Expected {
                id: row.id,
                status: JobStatus::Queued,
                cancel_requested: false,
                pause_requested: false,
                attempt: 0,
                epoch: 0,
                lease_until: 0,
                events: 1,
                steps: 0,
                checkpoints: Vec::new(),
            });
            return;
        }
        Operation::Claim => {
            let now = model.now;
            let expected = model.jobs.iter().position(|job| match job.status {
                JobStatus::Queued => true,
                JobStatus::Running => job.lease_until <= now,
                _ => false,
            });
            let found = store.claim("tests", LEASE).await.expect("claims");
            let Some(at) = expected else {
                assert!(found.is_none(), "{found:?}");
                return;
            };
            let (claim, _job) = found.expect("a job waits");
            let job = &mut model.jobs[at];
            job.status = JobStatus::Running;
            job.epoch += 1;
            job.attempt += 1;
            job.lease_until = now + LEASE;
            assert_eq!((&claim.job_id, claim.epoch), (&job.id, job.epoch));
            model.claims.push((claim, at));
            return;
        }
        Operation::Wait(seconds) => {
            fixture.clock.advance(*seconds);
            model.now += seconds;
            return;
        }
        Operation::Cancel(number) => {
            if model.jobs.is_empty() {
                return;
            }
            let at = number % model.jobs.len();
            let job = &mut model.jobs[at];
            let outcome = store.request_cancel(&job.id).await.expect("asks").expect("is there");
            match job.status {
                JobStatus::Queued | JobStatus::Paused => {
                    assert!(matches!(outcome, CancelOutcome::Cancelled(_)), "{outcome:?}");
                    job.status = JobStatus::Cancelled;
                    job.events += 1;
                }
                JobStatus::Running => {
                    assert!(matches!(outcome, CancelOutcome::Requested(_)), "{outcome:?}");
                }
                JobStatus::Cancelled => {
                    assert!(matches!(outcome, CancelOutcome::AlreadyCancelled(_)), "{outcome:?}");
                }
                _ => {
                    assert!(matches!(outcome, CancelOutcome::TooLate(_)), "{outcome:?}");
                    return;
                }
            }
            job.cancel_requested = true;
            return;
        }
        Operation::Pause(number) => {
            if model.jobs.is_empty() {
                return;
            }
            let at = number % model.jobs.len();
            let job = &mut model.jobs[at];
            let outcome = store.request_pause(&job.id, &event()).await.expect("asks");
            let outcome = outcome.expect("is there");
            match job.status {
                JobStatus::Queued => {
                    assert!(matches!(outcome, PauseOutcome::Paused(_)), "{outcome:?}");
                    job.status = JobStatus::Paused;
                    job.events += 2;
                }
                JobStatus::Running if !job.cancel_requested => {
                    assert!(matches!(outcome, PauseOutcome::Requested(_)), "{outcome:?}");
                    job.events += i64::from(!job.pause_requested);
                    job.pause_requested = true;
                }
                JobStatus::Paused => {
                    assert!(matches!(outcome, PauseOutcome::AlreadyPaused(_)), "{outcome:?}");
                }
                _ => assert!(matches!(outcome, PauseOutcome::Refused(_)), "{outcome:?}"),
            }
            return;
        }
        Operation::Resume(number) => {
            if model.jobs.is_empty() {
                return;
            }
            let at = number % model.jobs.len();
            let job = &mut model.jobs[at];
            let outcome = store.resume(&job.id, &event()).await.expect("asks").expect("is there");
            match job.status {
                JobStatus::Paused => {
                    assert!(matches!(outcome, ResumeOutcome::Resumed(_)), "{outcome:?}");
                    job.status = JobStatus::Queued;
                    job.events += 1;
                }
                JobStatus::Running if !job.cancel_requested && job.pause_requested => {
                    assert!(matches!(outcome, ResumeOutcome::Resumed(_)), "{outcome:?}");
                    job.pause_requested = false;
                    job.events += 1;
                }
                JobStatus::Queued => {
                    assert!(matches!(outcome, ResumeOutcome::NotPaused(_)), "{outcome:?}");
                }
                JobStatus::Running if !job.cancel_requested => {
                    assert!(matches!(outcome, ResumeOutcome::NotPaused(_)), "{outcome:?}");
                }
                _ => assert!(matches!(outcome, ResumeOutcome::Refused(_)), "{outcome:?}"),
            }
            return;
        }
        Operation::RequeueOrphans => {
            let requeued = store.requeue_orphans(&event()).await.expect("requeues");
            let mut expected = Vec::new();
            for at in 0..model.jobs.len() {
                if model.jobs[at].status == JobStatus::Running {
                    model.give_back(at, true);
                    if model.jobs[at].status == JobStatus::Queued {
                        model.jobs[at].events += 1;
                        expected.push(model.jobs[at].id.clone());
                    }
                }
            }
            assert_eq!(requeued, expected);
            return;
        }
        _ => {}
    }

    // What is left needs a claim, held or lost.
    if model.claims.is_empty() {
        return;
    }
    let pick = |number: &usize| model.claims[number % model.claims.len()].clone();
    match operation {
        Operation::Heartbeat(number) => {
            let (claim, at) = pick(number);
            let held = model.holds(&claim, at);
            let result = store.heartbeat(&claim, LEASE).await;
            if let Ok(reply) = &result {
                assert_eq!(reply.cancel_requested, model.jobs[at].cancel_requested);
                assert_eq!(reply.pause_requested, model.jobs[at].pause_requested);
            }
            if agree(held, result) {
                model.jobs[at].lease_until = model.now + LEASE;
            }
        }
        Operation::Release(number) => {
            let (claim, at) = pick(number);
            let held = model.holds(&claim, at);
            if agree(held, store.release(&claim, &event()).await) {
                model.give_back(at, true);
                model.jobs[at].events += 1;
            }
        }
        Operation::Retry(number) => {
            let (claim, at) = pick(number);
            let held = model.holds(&claim, at);
            if agree(held, store.retry(&claim, &event()).await) {
                model.give_back(at, false);
                model.jobs[at].events += 1;
            }
        }
        Operation::Append(number) => {
            let (claim, at) = pick(number);
            let held = model.holds(&claim, at);
            if agree(held, store.append_events(&claim, &event()).await) {
                model.jobs[at].events += 1;
            }
        }
        Operation::Progress(number, step) => {
            let (claim, at) = pick(number);
            let held = model.holds(&claim, at);
            let result = store.record_progress(&claim, &metrics(*step), None, &event()).await;
            if agree(held, result) {
                model.jobs[at].events += 1;
                model.jobs[at].steps = *step;
            }
        }
        Operation::Checkpoint(number, step) => {
            let (claim, at) = pick(number);
            let held = model.holds(&claim, at);
            let (row, tuned, files) = checkpoint(&claim.job_id, *step);
            let result = store
                .add_checkpoint(
                    &claim,
                    &NewCheckpoint {
                        checkpoint: &row,
                        model: &tuned,
                        files: &files,
                        events: &event(),
                    },
                )
                .await;
            let job = &mut model.jobs[at];
            if let Ok(added) = result {
                assert_eq!(added, !job.checkpoints.contains(step));
            }
            if agree(held, result) && !job.checkpoints.contains(step) {
                job.checkpoints.push(*step);
                job.events += 1;
            }
        }
        Operation::Succeed(number) => {
            let (claim, at) = pick(number);
            let held = model.holds(&claim, at);
            let success = success(&claim.job_id);
            if agree(held, store.finish_succeeded(&claim, &success).await) {
                model.jobs[at].end(JobStatus::Succeeded);
                model.jobs[at].steps = success.trained_steps;
            }
        }
        Operation::Fail(number) => {
            let (claim, at) = pick(number);
            let held = model.holds(&claim, at);
            let error = JobError {
                code: ErrorCode::NanLoss,
                message: "the loss is NaN".to_owned(),
                param: None,
            };
            if agree(held, store.finish_failed(&claim, &error, &event()).await) {
                model.jobs[at].end(JobStatus::Failed);
                model.jobs[at].events += 1;
            }
        }
        Operation::EndCancelled(number) => {
            let (claim, at) = pick(number);
            let held = model.holds(&claim, at);
            if agree(held, store.finish_cancelled(&claim).await) {
                model.jobs[at].end(JobStatus::Cancelled);
                model.jobs[at].cancel_requested = true;
                model.jobs[at].events += 1;
            }
        }
        _ => unreachable!("handled above"),
    }
}

async fn compare(fixture: &Fixture, model: &Model) {
    for expected in &model.jobs {
        let job = fixture.job(&expected.id).await;
        assert_eq!(job.status, expected.status, "{}", expected.id);
        assert_eq!(job.attempt, expected.attempt);
        assert_eq!(job.cancel_requested, expected.cancel_requested);
        assert_eq!(job.pause_requested, expected.pause_requested);
        assert_eq!(job.trained_steps, expected.steps);
        assert_eq!(job.finished_at.is_some(), job.status.is_terminal());
        let sequences = fixture.event_sequences(&expected.id).await;
        assert_eq!(sequences, (1..=expected.events).collect::<Vec<i64>>(), "no gaps");
    }
}

/// Every job that has ended stands in the outbox once, whichever way it ended, and no other does.
async fn compare_told(fixture: &Fixture, model: &Model, endpoint_id: &str) {
    let told = fixture.store.list_webhook_deliveries(endpoint_id, &first(100)).await;
    let mut told: Vec<(String, EventType)> = told
        .expect("lists")
        .items
        .into_iter()
        .map(|delivery| (delivery.event.subject, delivery.event.kind))
        .collect();
    told.sort_by(|one, other| one.0.cmp(&other.0));
    let mut ended: Vec<(String, EventType)> = model
        .jobs
        .iter()
        .filter_map(|job| Some((job.id.clone(), EventType::of(job.status)?)))
        .collect();
    ended.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(told, ended);
}

/// Walks through a job's events in pages, newest first or as they come, while others are written: so
/// many before the walk and after each page. Returns the numbers of those seen, and how many there
/// were when the walk began.
async fn walk(limit: u32, writes: &[usize], newest_first: bool) -> (Vec<i64>, i64) {
    let fixture = Fixture::sqlite().await;
    fixture.add_job().await;
    let (claim, _job) = fixture.claim().await;
    let mut writes = writes.iter();
    let mut count = 0;
    let mut write = async || {
        let events = vec![event()[0].clone(); writes.next().copied().unwrap_or(0)];
        fixture.store.append_events(&claim, &events).await.expect("appends");
        count += events.len() as i64;
        count
    };
    let at_first = write().await;
    let mut page = PageRequest { after: None, limit };
    let mut seen = Vec::new();
    loop {
        let found = match newest_first {
            true => fixture.store.list_events(&claim.job_id, &page).await,
            false => fixture
                .store
                .follow_events(&claim.job_id, &page)
                .await
                .map(|page| Arc::new(CachedReply::new(page))),
        };
        let found = found.expect("lists");
        seen.extend(found.items.iter().map(|event| event.sequence));
        if !found.has_more {
            return (seen, at_first);
        }
        page.after = found.items.last().map(|event| event.id.clone());
        write().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_operations_leave_every_job_as_the_state_machine_says(operations in operations()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let fixture = Fixture::sqlite().await;
            let training_file = fixture.add_file().await;
            let endpoint = webhook_endpoint();
            assert!(fixture.store.insert_webhook_endpoint(&endpoint).await.expect("adds"));
            let mut model = Model::default();
            for operation in &operations {
                apply(&fixture, &mut model, operation, &training_file).await;
            }
            compare(&fixture, &model).await;
            compare_told(&fixture, &model, &endpoint.id).await;
        });
    }

    #[test]
    fn pages_of_events_meet_without_gaps_while_others_are_written(
        limit in 1..7_u32, writes in prop::collection::vec(0..9_usize, 1..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let (newest_first, at_first) = runtime.block_on(walk(limit, &writes, true));
        prop_assert_eq!(newest_first, (1..=at_first).rev().collect::<Vec<i64>>());
        let (as_they_come, at_first) = runtime.block_on(walk(limit, &writes, false));
        prop_assert!(as_they_come.len() as i64 >= at_first);
        prop_assert_eq!(&as_they_come, &(1..=as_they_come.len() as i64).collect::<Vec<i64>>());
    }
}
