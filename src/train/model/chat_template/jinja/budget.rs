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
const BYTES_A_STEP: usize = 16;
/// Steps after which the clock is read again.
const STEPS_A_LOOK: u64 = 4096;

/// What may be spent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Steps: an expression, a statement, an item, 16 bytes of a text.
    pub(crate) steps: u64,
    /// Bytes that values take up at one time.
    pub(crate) bytes: usize,
    /// Time on the clock.
    pub(crate) time: Duration,
}

impl Limits {
    /// Those of one rendering: far more than a long conversation needs. The steps are what ends it, on every machine
    /// alike; the time is for what nobody counted.
    pub(crate) const RENDERING: Self =
        Self { steps: 8_000_000, bytes: 96 * 1024 * 1024, time: Duration::from_secs(10) };

    /// Those of a prompt, which is rendered several times where a template refuses a form of it.
    pub(crate) const PROMPT: Self = Self { steps: 10_000_000, ..Self::RENDERING };

    /// Those of a conversation of training data, whose turns are rendered each.
    pub(crate) const CONVERSATION: Self =
        Self { steps: 100_000_000, time: Duration::from_secs(60), ..Self::RENDERING };
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
        let limits = BUDGET.with(|budget| budget.limits.get());
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
struct Budget {
    limits: Cell<Limits>,
    steps: Cell<u64>,
    /// Bytes that are taken up.
    bytes: Cell<usize>,
    deadline: Cell<Option<Instant>>,
    /// Steps until the clock is read.
    until_look: Cell<u64>,
    spent: Cell<Option<Spent>>,
    /// How deep what walks through values has descended.
    descent: Cell<usize>,
}

/// Outside of a rendering nothing is limited.
const UNLIMITED: Limits = Limits { steps: u64::MAX, bytes: usize::MAX, time: Duration::MAX };

impl Budget {
    const fn new(limits: Limits, deadline: Option<Instant>) -> Self {
        Self {
            limits: Cell::new(limits),
            steps: Cell::new(limits.steps),
            bytes: Cell::new(0),
            deadline: Cell::new(deadline),
            until_look: Cell::new(STEPS_A_LOOK),
            spent: Cell::new(None),
            descent: Cell::new(0),
        }
    }

    /// Changes places with another one.
    fn swap(&self, other: &Self) {
        self.limits.swap(&other.limits);
        self.steps.swap(&other.steps);
        self.bytes.swap(&other.bytes);
        self.deadline.swap(&other.deadline);
        self.until_look.swap(&other.until_look);
        self.spent.swap(&other.spent);
        self.descent.swap(&other.descent);
    }

    fn spend(&self, what: Spent) {
        if self.spent.get().is_none() {
            self.spent.set(Some(what));
        }
    }
}

thread_local! {
    static BUDGET: Budget = const { Budget::new(UNLIMITED, None) };
}

/// The budget that holds outside of another one, and comes back behind it.
struct Outer(Budget);

impl Drop for Outer {
    fn drop(&mut self) {
        BUDGET.with(|budget| {
            budget.swap(&self.0);
            let taken = self.0.limits.get().steps.saturating_sub(self.0.steps.get());
            if budget.limits.get().steps != UNLIMITED.steps {
                budget.steps.set(budget.steps.get().saturating_sub(taken));
            }
        });
    }
}

/// Runs something within limits, and never beyond what is left of the steps and the time around it.
pub(crate) fn within<T>(limits: Limits, run: impl FnOnce() -> T) -> T {
    let now = Instant::now();
    let (steps, around) = BUDGET.with(|budget| (budget.steps.get(), budget.deadline.get()));
    let deadline = [now.checked_add(limits.time), around].into_iter().flatten().min();
    let time = deadline.map_or(limits.time, |deadline| deadline.saturating_duration_since(now));
    let limits = Limits { steps: limits.steps.min(steps), time, ..limits };
    let outer = Outer(Budget::new(limits, deadline));
    BUDGET.with(|budget| budget.swap(&outer.0));
    let result = run();
    drop(outer);
    result
}

/// Counts steps.
pub(crate) fn count(steps: u64) {
    BUDGET.with(|budget| {
        match budget.steps.get().checked_sub(steps) {
            Some(left) => budget.steps.set(left),
            None => {
                budget.steps.set(0);
                budget.spend(Spent::Steps);
            }
        }
        match budget.until_look.get().checked_sub(steps) {
            Some(left) => budget.until_look.set(left),
            None => {
                budget.until_look.set(STEPS_A_LOOK);
                if budget.deadline.get().is_some_and(|deadline| Instant::now() > deadline) {
                    budget.spend(Spent::Time);
                }
            }
        }
    });
}

/// Whether something has run out.
pub(crate) fn is_spent() -> bool {
    BUDGET.with(|budget| budget.spent.get().is_some())
}

/// Fails where something has run out.
///
/// # Errors
/// What has run out.
pub(crate) fn check() -> Result<(), Error> {
    BUDGET.with(|budget| budget.spent.get()).map_or(Ok(()), |spent| Err(spent.error()))
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
    BUDGET.with(|budget| {
        let taken = budget.bytes.get().saturating_add(bytes);
        budget.bytes.set(taken);
        if taken > budget.limits.get().bytes {
            budget.spend(Spent::Bytes);
        }
    });
}

/// Counts memory that a value took up.
pub(crate) fn give_bytes(bytes: usize) {
    BUDGET.with(|budget| budget.bytes.set(budget.bytes.get().saturating_sub(bytes)));
}

/// Counts how deep a value is nested.
pub(crate) fn count_depth(depth: usize) {
    if depth > MAX_VALUE_DEPTH {
        BUDGET.with(|budget| {
            if budget.deadline.get().is_some() {
                budget.spend(Spent::Depth);
            }
        });
    }
}

/// Goes one level down into a value. Namespaces may come to hold themselves.
///
/// # Errors
/// The value is nested too deeply, and what has run out.
pub(crate) fn descend() -> Result<(), Error> {
    charge(1)?;
    BUDGET.with(|budget| {
        if budget.descent.get() > MAX_VALUE_DEPTH {
            return Err(Spent::Depth.error());
        }
        budget.descent.set(budget.descent.get() + 1);
        Ok(())
    })
}

/// Goes back up after [`descend`].
pub(crate) fn ascend() {
    BUDGET.with(|budget| budget.descent.set(budget.descent.get().saturating_sub(1)));
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
    let (taken, limits) = BUDGET.with(|budget| (budget.bytes.get(), budget.limits.get()));
    if taken.saturating_add(bytes) > limits.bytes {
        return Err(Spent::Bytes.error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { steps: 100, bytes: 1000, time: Duration::from_secs(60) };

    #[test]
    fn what_is_spent_fails_until_the_end_and_no_longer() {
        assert!(charge(1).is_ok() && !is_spent(), "nothing is limited outside");
        within(LIMITS, || {
            assert!(charge(100).is_ok());
            assert!(charge(1).unwrap_err().is_limit());
            assert!(check().is_err());
        });
        within(LIMITS, || assert!(check().is_ok()));
        within(LIMITS, || {
            take_bytes(900);
            assert!(check_room(200).is_err() && check().is_ok());
            give_bytes(900);
            take_bytes(1001);
            assert!(check().unwrap_err().is_limit());
        });
        within(Limits { time: Duration::ZERO, steps: u64::MAX, ..LIMITS }, || {
            std::thread::sleep(Duration::from_millis(2));
            count(STEPS_A_LOOK + 1);
            assert!(check().is_err());
        });
    }

    #[test]
    fn renderings_share_the_steps_of_what_surrounds_them() {
        let inner = Limits { steps: 60, ..LIMITS };
        within(LIMITS, || {
            assert!(within(inner, || charge(60)).is_ok());
            assert!(within(inner, || charge(30)).is_ok());
            assert!(within(inner, || charge(30)).is_err());
            assert!(check().is_ok(), "the inner one ended");
        });
    }
}
