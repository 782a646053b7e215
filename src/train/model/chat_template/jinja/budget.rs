//! What a rendering may cost: steps, memory, nesting and time. A template comes with a model that anybody may have
//! written, so that whatever it does is counted.
//!
//! The budget belongs to the thread that renders. Whatever works on values charges it. What cannot fail where it
//! works, such as a comparison, only counts; the next step of the interpreter fails then.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::error::Error;

/// Longest text and most items that one value of a template may have.
pub(crate) const MAX_TEXT_BYTES: usize = 16 * 1024 * 1024;
const MAX_ITEMS: usize = 1024 * 1024;
/// What an item of a list takes up.
const ITEM_BYTES: usize = 24;
/// How deep values may be nested in each other.
const MAX_VALUE_DEPTH: usize = 160;
/// Bytes of a text that are worked on in one step.
const BYTES_A_STEP: usize = 64;
/// Steps after which the clock is read again.
const STEPS_A_LOOK: u64 = 4096;

/// What may be spent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Steps: an expression, a statement, an item, 64 bytes of a text.
    pub(crate) steps: u64,
    /// Bytes that values take up at one time.
    pub(crate) bytes: usize,
    /// Time on the clock.
    pub(crate) time: Duration,
}

impl Limits {
    /// Those of one rendering: far more than a long conversation needs.
    pub(crate) const RENDERING: Self =
        Self { steps: 10_000_000, bytes: 96 * 1024 * 1024, time: Duration::from_secs(1) };
}

/// What has run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spent {
    Steps,
    Bytes,
    Time,
    Depth,
}

impl Spent {
    fn error(self) -> Error {
        let limits = State::get().limits;
        Error::limit(match self {
            Self::Steps => format!("the template takes more than {} steps", limits.steps),
            Self::Bytes => {
                format!("the values of the template take up more than {} bytes", limits.bytes)
            }
            Self::Time => format!("the template takes more than {:?}", limits.time),
            Self::Depth => {
                format!("the template nests values too deeply: more than {MAX_VALUE_DEPTH} levels")
            }
        })
    }
}

/// What is left on a thread.
#[derive(Clone, Copy)]
struct State {
    limits: Limits,
    steps: u64,
    /// Bytes that are taken up.
    bytes: usize,
    deadline: Option<Instant>,
    /// Steps until the clock is read.
    until_look: u64,
    spent: Option<Spent>,
    /// How deep what walks through values has descended.
    descent: usize,
}

impl State {
    /// Outside of a rendering nothing is limited.
    const UNLIMITED: Self = Self {
        limits: Limits { steps: u64::MAX, bytes: usize::MAX, time: Duration::MAX },
        steps: u64::MAX,
        bytes: 0,
        deadline: None,
        until_look: STEPS_A_LOOK,
        spent: None,
        descent: 0,
    };

    fn get() -> Self {
        STATE.get()
    }

    fn set(self) {
        STATE.set(self);
    }
}

thread_local! {
    static STATE: Cell<State> = const { Cell::new(State::UNLIMITED) };
}

/// Puts back what was left outside, less the steps that were taken inside.
struct Outer(State);

impl Drop for Outer {
    fn drop(&mut self) {
        let inner = State::get();
        let taken = inner.limits.steps.saturating_sub(inner.steps);
        let mut outer = self.0;
        if outer.limits.steps != u64::MAX {
            outer.steps = outer.steps.saturating_sub(taken);
        }
        outer.set();
    }
}

/// Runs something within limits, and never beyond what is left of those around it.
pub(crate) fn within<T>(limits: Limits, run: impl FnOnce() -> T) -> T {
    let outer = Outer(State::get());
    let now = Instant::now();
    let deadline = now.checked_add(limits.time);
    let deadline = match outer.0.deadline {
        Some(earlier) => deadline.map(|deadline| deadline.min(earlier)).or(Some(earlier)),
        None => deadline,
    };
    let time = deadline.map_or(limits.time, |deadline| deadline.saturating_duration_since(now));
    let steps = limits.steps.min(outer.0.steps);
    let limits = Limits { steps, time, ..limits };
    State { limits, steps, deadline, ..State::UNLIMITED }.set();
    let result = run();
    drop(outer);
    result
}

/// Counts steps.
pub(crate) fn count(steps: u64) {
    let mut state = State::get();
    match state.steps.checked_sub(steps) {
        Some(left) => state.steps = left,
        None => {
            state.steps = 0;
            state.spent.get_or_insert(Spent::Steps);
        }
    }
    match state.until_look.checked_sub(steps) {
        Some(left) => state.until_look = left,
        None => {
            state.until_look = STEPS_A_LOOK;
            if state.deadline.is_some_and(|deadline| Instant::now() > deadline) {
                state.spent.get_or_insert(Spent::Time);
            }
        }
    }
    state.set();
}

/// Whether something has run out.
pub(crate) fn is_spent() -> bool {
    State::get().spent.is_some()
}

/// Fails where something has run out.
///
/// # Errors
/// What has run out.
pub(crate) fn check() -> Result<(), Error> {
    State::get().spent.map_or(Ok(()), |spent| Err(spent.error()))
}

/// Counts steps.
///
/// # Errors
/// What has run out.
pub(crate) fn charge(steps: u64) -> Result<(), Error> {
    count(steps);
    check()
}

/// Counts the steps of work on a text.
///
/// # Errors
/// What has run out.
pub(crate) fn charge_text(bytes: usize) -> Result<(), Error> {
    charge(steps_of(bytes))
}

/// Counts the steps of work on a text.
pub(crate) fn count_text(bytes: usize) {
    count(steps_of(bytes));
}

fn steps_of(bytes: usize) -> u64 {
    u64::try_from(1 + bytes / BYTES_A_STEP).unwrap_or(u64::MAX)
}

/// Counts the steps of work on so many items.
///
/// # Errors
/// What has run out.
pub(crate) fn charge_items(items: usize) -> Result<(), Error> {
    charge(u64::try_from(items).unwrap_or(u64::MAX))
}

/// Counts memory that a value takes up.
pub(crate) fn take_bytes(bytes: usize) {
    let mut state = State::get();
    state.bytes = state.bytes.saturating_add(bytes);
    if state.bytes > state.limits.bytes {
        state.spent.get_or_insert(Spent::Bytes);
    }
    state.set();
}

/// Counts memory that a value took up.
pub(crate) fn give_bytes(bytes: usize) {
    let mut state = State::get();
    state.bytes = state.bytes.saturating_sub(bytes);
    state.set();
}

/// Counts how deep a value is nested.
pub(crate) fn count_depth(depth: usize) {
    if depth > MAX_VALUE_DEPTH {
        let mut state = State::get();
        if state.deadline.is_some() {
            state.spent.get_or_insert(Spent::Depth);
            state.set();
        }
    }
}

/// Goes one level down into a value. Namespaces may come to hold themselves.
///
/// # Errors
/// The value is nested too deeply, and what has run out.
pub(crate) fn descend() -> Result<(), Error> {
    charge(1)?;
    let mut state = State::get();
    if state.descent > MAX_VALUE_DEPTH {
        return Err(Spent::Depth.error());
    }
    state.descent += 1;
    state.set();
    Ok(())
}

/// Goes back up after [`descend`].
pub(crate) fn ascend() {
    let mut state = State::get();
    state.descent = state.descent.saturating_sub(1);
    state.set();
}

/// Refuses texts that a template makes longer than the machine can bear.
///
/// # Errors
/// The text would be too long, and what has run out.
pub(crate) fn check_text_bytes(bytes: usize) -> Result<(), Error> {
    check()?;
    if bytes > MAX_TEXT_BYTES {
        return Err(Error::limit(format!(
            "the template makes a text of more than {MAX_TEXT_BYTES} bytes"
        )));
    }
    check_room(bytes)
}

/// Refuses lists that a template makes longer than the machine can bear.
///
/// # Errors
/// The list would be too long, and what has run out.
pub(crate) fn check_items(items: usize) -> Result<(), Error> {
    check()?;
    if items > MAX_ITEMS {
        return Err(Error::limit(format!(
            "the template makes a list of more than {MAX_ITEMS} items"
        )));
    }
    check_room(items.saturating_mul(ITEM_BYTES))
}

/// Refuses what would take up more memory than is left.
///
/// # Errors
/// So much is not left.
pub(crate) fn check_room(bytes: usize) -> Result<(), Error> {
    let state = State::get();
    if state.bytes.saturating_add(bytes) > state.limits.bytes {
        return Err(Spent::Bytes.error());
    }
    Ok(())
}
