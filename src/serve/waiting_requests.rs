//! Requests that wait for answers: how many of each project. One project cannot take all places.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::project::Project;

/// Requests that may wait.
pub(super) const MAX_WAITING_REQUESTS: usize = 512;

/// Requests of one project that may wait.
pub(super) const MAX_WAITING_PER_PROJECT: usize = MAX_WAITING_REQUESTS / 4 * 3;

/// Requests that wait, by project.
#[derive(Default)]
pub(super) struct WaitingRequests(Mutex<HashMap<Project, usize>>);

/// The place of a request that waits. It is free again when this is dropped.
pub(super) struct WaitingPlace {
    all: Arc<WaitingRequests>,
    project: Project,
}

impl WaitingRequests {
    /// A place for a request of this project. A project without any always gets one.
    pub fn take(self: &Arc<Self>, project: &Project) -> Option<WaitingPlace> {
        let mut counts = self.lock();
        let of_project = counts.get(project).copied().unwrap_or_default();
        let total: usize = counts.values().sum();
        let is_full = of_project >= MAX_WAITING_PER_PROJECT || total >= MAX_WAITING_REQUESTS;
        if is_full && of_project > 0 {
            return None;
        }
        *counts.entry(project.clone()).or_default() += 1;
        Some(WaitingPlace { all: Arc::clone(self), project: project.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Project, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for WaitingPlace {
    fn drop(&mut self) {
        let mut counts = self.all.lock();
        let left = counts.get(&self.project).map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            counts.remove(&self.project);
        } else {
            counts.insert(self.project.clone(), left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_project_takes_all_places_and_each_gets_one() {
        let all = Arc::new(WaitingRequests::default());
        let project = |name: &str| name.parse::<Project>().expect("a name");
        let take = |name: &str| all.take(&project(name));
        let greedy: Vec<_> = std::iter::from_fn(|| take("greedy")).collect();
        assert_eq!(greedy.len(), MAX_WAITING_PER_PROJECT);
        let other: Vec<_> = std::iter::from_fn(|| take("other")).collect();
        assert_eq!(other.len(), MAX_WAITING_REQUESTS - MAX_WAITING_PER_PROJECT);
        let late = take("late").expect("the first one");
        assert!(take("late").is_none());
        drop((greedy, late));
        assert!(take("late").is_some() && take("greedy").is_some());
        drop(other);
        assert!(all.lock().is_empty());
    }
}
