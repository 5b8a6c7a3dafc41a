//! Failures of single files in a command that goes on with the rest.

use parking_lot::Mutex;

use super::exit::{Exit, Failure, Outcome};
use super::show::{Out, warn};

/// Most failures that are named; the rest is counted.
const MOST_NAMED: usize = 200;

/// Failures so far; shared by all that work on the command.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    named: Vec<Failure>,
    count: u64,
    exit: Option<Exit>,
}

impl Problems {
    /// One more.
    pub(crate) fn add(&self, failure: Failure) {
        let mut found = self.found.lock();
        found.count += 1;
        found.exit = match found.exit {
            None => Some(failure.exit),
            Some(exit) if exit == failure.exit => Some(exit),
            Some(_) => Some(Exit::Failure),
        };
        if found.named.len() < MOST_NAMED {
            found.named.push(failure);
        }
    }

    /// What came of one that is shown on `out`; None: it failed, the command goes on with the next.
    ///
    /// Errors: nobody takes what is written there, so that the rest is in vain.
    pub(crate) fn note<T>(&self, outcome: Outcome<T>, out: &Out) -> Outcome<Option<T>> {
        match outcome {
            Ok(found) => Ok(Some(found)),
            Err(failure) if out.is_in_vain(&failure) => Err(failure),
            Err(failure) => {
                self.add(failure);
                Ok(None)
            }
        }
    }

    /// Name them on standard error; the command fails if there was one, with their code if they agree.
    pub(crate) fn conclude(&self, what: &str) -> Outcome {
        let found = std::mem::take(&mut *self.found.lock());
        let Some(exit) = found.exit else { return Ok(()) };
        if let ([only], 1) = (&found.named[..], found.count) {
            return Err(only.clone());
        }
        for failure in &found.named {
            warn(&failure.message);
        }
        Err(Failure::new(exit, format!("{} {what}", found.count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_that_of_all_or_1() {
        let problems = Problems::default();
        assert!(problems.conclude("x").is_ok());
        for _ in 0..2 {
            problems.add(Failure::new(Exit::Permission, "a"));
        }
        assert_eq!(problems.conclude("files were not copied").unwrap_err().exit, Exit::Permission);
        problems.add(Failure::new(Exit::Permission, "a"));
        problems.add(Failure::new(Exit::NotFound, "b"));
        let failure = problems.conclude("files were not copied").unwrap_err();
        assert_eq!((failure.exit, failure.message.as_str()), (Exit::Failure, "2 files were not copied"));
    }
}
