//! The time limit of a whole migration: how much of it is spent, and what its passing does.

use std::time::{Duration, Instant};

/// What happens when the time limit has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passing {
    /// The migration is given up.
    GivesUp,
    /// The round under way is cut short, and the score does what `--on-timeout` says.
    EndsRounds,
    /// Nothing: that has been done, or the pause has a limit of its own.
    DoesNothing,
}

/// A stopwatch that stands while the operator is waited for.
#[derive(Debug)]
pub(super) struct TimeLimit {
    limit: Duration,
    spent: Duration,
    runs_since: Option<Instant>,
    passing: Passing,
}

impl TimeLimit {
    /// It runs from `now` on.
    pub(super) fn new(limit: Duration, now: Instant) -> Self {
        Self { limit, spent: Duration::ZERO, runs_since: Some(now), passing: Passing::GivesUp }
    }

    /// From now on its passing does this.
    pub(super) fn set_passing(&mut self, passing: Passing) {
        self.passing = passing;
    }

    /// What its passing does.
    pub(super) fn passing(&self) -> Passing {
        self.passing
    }

    /// The operator is waited for.
    pub(super) fn stand(&mut self, now: Instant) {
        if let Some(since) = self.runs_since.take() {
            self.spent += now.saturating_duration_since(since);
        }
    }

    /// … and not any more.
    pub(super) fn run(&mut self, now: Instant) {
        self.runs_since.get_or_insert(now);
    }

    /// What is to happen, if it has passed.
    pub(super) fn passed(&self, now: Instant) -> Option<Passing> {
        let runs = now.saturating_duration_since(self.runs_since?);
        (self.spent + runs >= self.limit).then_some(self.passing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_while_the_operator_is_waited_for() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut limit = TimeLimit::new(3 * second, start);
        assert_eq!(limit.passed(start + 2 * second), None);
        limit.stand(start + 2 * second);
        assert_eq!(limit.passed(start + 100 * second), None);
        limit.run(start + 100 * second);
        limit.run(start + 101 * second);
        limit.set_passing(Passing::EndsRounds);
        assert_eq!(limit.passed(start + 100 * second), None);
        assert_eq!(limit.passed(start + 101 * second), Some(Passing::EndsRounds));
    }
}
