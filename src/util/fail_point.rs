//! Fail points: named points on the path of a job at which tests tell a process to die, to stall or to
//! fail. Without the feature `fail-points`, which no shipped binary has, they compile to nothing.
//!
//! The environment variable `HONE_FAIL_POINTS` says what to do, for a server and for the trainers that
//! inherit it: a folder, then rules, separated by `;`. A rule `POINT@VISIT=ACTION` acts at one visit of a
//! point; without `@VISIT` that is the first. Visits are counted in the folder (`POINT.visits` has a byte
//! for each), by all processes together and across restarts: a job that dies at a point goes past it
//! after the restart. Actions are
//!
//! - `die`: the process aborts;
//! - `stall`: it waits until the folder has a file `POINT.go`; `stall:50` waits 50 milliseconds instead;
//! - `fail`: the operation returns an error.

/// A point on the path of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailPoint {
    /// The executor has claimed the job.
    Claimed,
    /// Its files are staged.
    Staged,
    /// Its trainer is started.
    TrainerStarted,
    /// The trainer has written a checkpoint and renamed it to its final name.
    CheckpointRenamed,
    /// The checkpoint is published: its blobs and rows are stored.
    CheckpointPublished,
    /// The blobs of the result are stored.
    ResultStored,
    /// The end of the job is stored, with the rows of its result.
    JobEnded,
}

#[cfg(not(feature = "fail-points"))]
impl FailPoint {
    /// Does nothing without the feature `fail-points`.
    ///
    /// # Errors
    /// None.
    #[inline]
    pub fn reach(self) -> std::io::Result<()> {
        Ok(())
    }

    /// Does nothing without the feature `fail-points`.
    ///
    /// # Errors
    /// None.
    #[inline]
    pub async fn reach_async(self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(feature = "fail-points")]
pub use rules::VARIABLE;

#[cfg(feature = "fail-points")]
mod rules {
    use std::fs::OpenOptions;
    use std::io::{self, Write};
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::time::Duration;

    use super::FailPoint;

    /// The environment variable that holds the rules.
    pub const VARIABLE: &str = "HONE_FAIL_POINTS";

    /// How often a stalled process looks for the file that lets it go on.
    const POLL: Duration = Duration::from_millis(5);

    /// The rules of this process, read once.
    static RULES: OnceLock<Option<Rules>> = OnceLock::new();

    impl FailPoint {
        /// Every point, in the order in which a job meets them.
        pub const ALL: &'static [FailPoint] = &[
            Self::Claimed,
            Self::Staged,
            Self::TrainerStarted,
            Self::CheckpointRenamed,
            Self::CheckpointPublished,
            Self::ResultStored,
            Self::JobEnded,
        ];

        /// Its name in rules.
        pub fn as_str(self) -> &'static str {
            match self {
                Self::Claimed => "claimed",
                Self::Staged => "staged",
                Self::TrainerStarted => "trainer_started",
                Self::CheckpointRenamed => "checkpoint_renamed",
                Self::CheckpointPublished => "checkpoint_published",
                Self::ResultStored => "result_stored",
                Self::JobEnded => "job_ended",
            }
        }

        /// Counts a visit and does what the rules say about it. Blocks the thread while it stalls.
        ///
        /// # Errors
        /// The rules say that the operation fails.
        pub fn reach(self) -> io::Result<()> {
            let Some(rules) = rules() else { return Ok(()) };
            match rules.visit(self)? {
                None => Ok(()),
                Some(Action::Die) => die(self),
                Some(Action::Fail) => Err(failure(self)),
                Some(Action::StallFor(time)) => {
                    std::thread::sleep(time);
                    Ok(())
                }
                Some(Action::Stall) => {
                    while !rules.may_go_on(self) {
                        std::thread::sleep(POLL);
                    }
                    Ok(())
                }
            }
        }

        /// [`Self::reach`] for a task, which waits without a thread while it stalls.
        ///
        /// # Errors
        /// The rules say that the operation fails.
        pub async fn reach_async(self) -> io::Result<()> {
            let Some(rules) = rules() else { return Ok(()) };
            match rules.visit(self)? {
                None => Ok(()),
                Some(Action::Die) => die(self),
                Some(Action::Fail) => Err(failure(self)),
                Some(Action::StallFor(time)) => {
                    tokio::time::sleep(time).await;
                    Ok(())
                }
                Some(Action::Stall) => {
                    while !rules.may_go_on(self) {
                        tokio::time::sleep(POLL).await;
                    }
                    Ok(())
                }
            }
        }
    }

    /// What a process does at a point.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Action {
        Die,
        Stall,
        StallFor(Duration),
        Fail,
    }

    /// What a process does at one visit of a point.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Rule {
        point: FailPoint,
        visit: u64,
        action: Action,
    }

    /// What the variable holds.
    #[derive(Debug)]
    struct Rules {
        folder: PathBuf,
        rules: Vec<Rule>,
    }

    impl Rules {
        fn parse(text: &str) -> Option<Self> {
            let mut parts = text.split(';');
            let folder = parts.next().filter(|folder| Path::new(folder).is_absolute())?.into();
            let rules = parts.map(Rule::parse).collect::<Option<_>>()?;
            Some(Self { folder, rules })
        }

        /// Counts a visit; the action at it, if there is one.
        fn visit(&self, point: FailPoint) -> io::Result<Option<Action>> {
            let path = self.folder.join(format!("{}.visits", point.as_str()));
            let mut file = OpenOptions::new().append(true).create(true).open(path)?;
            file.write_all(b".")?;
            let visit = file.metadata()?.len();
            let rule = self.rules.iter().find(|rule| rule.point == point && rule.visit == visit);
            Ok(rule.map(|rule| rule.action))
        }

        fn may_go_on(&self, point: FailPoint) -> bool {
            self.folder.join(format!("{}.go", point.as_str())).exists()
        }
    }

    impl Rule {
        fn parse(text: &str) -> Option<Self> {
            let (place, action) = text.split_once('=')?;
            let (name, visit) = place.split_once('@').unwrap_or((place, "1"));
            let point = FailPoint::ALL.iter().copied().find(|point| point.as_str() == name)?;
            let action = match action.split_once(':') {
                None if action == "die" => Action::Die,
                None if action == "fail" => Action::Fail,
                None if action == "stall" => Action::Stall,
                Some(("stall", time)) => {
                    Action::StallFor(Duration::from_millis(time.parse().ok()?))
                }
                _ => return None,
            };
            Some(Self { point, visit: visit.parse().ok()?, action })
        }
    }

    /// The rules of this process. Ones that cannot be read end it: a test must not pass because of them.
    fn rules() -> Option<&'static Rules> {
        let read = || {
            let text = std::env::var(VARIABLE).ok()?;
            let rules = Rules::parse(&text);
            if rules.is_none() {
                tracing::error!("{VARIABLE} cannot be read: {text}");
                std::process::abort();
            }
            rules
        };
        RULES.get_or_init(read).as_ref()
    }

    fn die(point: FailPoint) -> ! {
        tracing::error!("fail point {}: the process dies", point.as_str());
        std::process::abort()
    }

    fn failure(point: FailPoint) -> io::Error {
        io::Error::other(format!("fail point {}", point.as_str()))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn rules_name_a_folder_and_points_with_visits_and_actions() {
            let text =
                "/tmp/x;claimed=die;checkpoint_renamed@2=stall:50;job_ended=stall;staged=fail";
            let rules = Rules::parse(text).expect("rules");
            assert_eq!(rules.folder, Path::new("/tmp/x"));
            let rule = |point, visit, action| Rule { point, visit, action };
            let expected = [
                rule(FailPoint::Claimed, 1, Action::Die),
                rule(FailPoint::CheckpointRenamed, 2, Action::StallFor(Duration::from_millis(50))),
                rule(FailPoint::JobEnded, 1, Action::Stall),
                rule(FailPoint::Staged, 1, Action::Fail),
            ];
            assert_eq!(rules.rules, expected);
            for wrong in ["", "x;claimed=die", "/x;claimed", "/x;claim=die", "/x;claimed@=die"] {
                assert!(Rules::parse(wrong).is_none(), "{wrong}");
            }
            for wrong in ["/x;claimed=explode", "/x;claimed=stall:soon", "/x;"] {
                assert!(Rules::parse(wrong).is_none(), "{wrong}");
            }
        }

        #[test]
        fn a_rule_acts_at_its_visit_alone_whoever_counts_the_visits() {
            let folder = tempfile::tempdir().expect("a folder");
            let text = format!("{};staged@2=fail", folder.path().display());
            let visit = |point| {
                // A process after a restart reads the rules again.
                Rules::parse(&text).expect("rules").visit(point).expect("counts")
            };
            assert_eq!(visit(FailPoint::Staged), None);
            assert_eq!(visit(FailPoint::Claimed), None);
            assert_eq!(visit(FailPoint::Staged), Some(Action::Fail));
            assert_eq!(visit(FailPoint::Staged), None);
        }
    }
}
