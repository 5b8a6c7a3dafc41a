//! The one table between what went wrong and the exit code; codes follow `sysexits.h`.
//!
//! Invariant: every command ends in `Ok` or in one [`Failure`], whose text says what happened, to what,
//! and what to do next.

use std::fmt;
use std::io::ErrorKind;
use std::process::ExitCode;

use swarm_proto::{Fault, fault};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exit {
    /// Something that no other code says; also: part of the work was done, the rest is named.
    Failure = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// Bytes do not verify, at every holder.
    Corrupt = 65,
    /// No such file or folder, here or in the swarm.
    NotFound = 66,
    /// The tracker or every holder cannot be reached, or a needed part of the system is missing.
    Unreachable = 69,
    /// Not allowed.
    Permission = 77,
    /// A setting is wrong.
    Config = 78,
    /// Stopped by Ctrl-C, as shells say it.
    Interrupted = 130,
}

impl Exit {
    /// All codes with what they mean, for the help text and the documents.
    pub const TABLE: [(Self, &'static str); 8] = [
        (Self::Failure, "other failures; part of the work may be done"),
        (Self::Usage, "the command line makes no sense"),
        (Self::Corrupt, "data is corrupt at every holder"),
        (Self::NotFound, "no such file or folder"),
        (Self::Unreachable, "tracker or holders unreachable, or the system lacks something"),
        (Self::Permission, "not permitted"),
        (Self::Config, "a setting is wrong"),
        (Self::Interrupted, "interrupted"),
    ];

    /// As the shell sees it.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What happened, to what.
    pub message: String,
    /// What to do next, if anything is known to help.
    pub hint: Option<String>,
}

/// What every command returns.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure with its text.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// The command line makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// With what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A failed call of the operating system; `doing` is a present-tense verb and its object.
    pub fn io(doing: impl fmt::Display, error: &std::io::Error) -> Self {
        Self::new(of_io(error.kind()), format!("{doing}: {error}"))
    }

    /// A failed call of the tracker or a peer.
    pub fn status(doing: impl fmt::Display, status: &tonic::Status) -> Self {
        let exit = of_fault(fault::of_status(status));
        let failure = Self::new(exit, format!("{doing}: {}", status.message()));
        match exit {
            Exit::Unreachable => failure.hint("is the tracker up? `swarmfs status` asks it"),
            _ => failure,
        }
    }

    /// An operation that the catalog refused.
    pub fn fault(doing: impl fmt::Display, fault: Fault, message: &str) -> Self {
        let words = if message.is_empty() { words_of(fault) } else { message };
        Self::new(of_fault(fault), format!("{doing}: {words}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// The code of a refusal by the catalog.
pub const fn of_fault(fault: Fault) -> Exit {
    match fault {
        Fault::NotFound | Fault::NoAttribute => Exit::NotFound,
        Fault::Corrupt => Exit::Corrupt,
        Fault::Permission => Exit::Permission,
        Fault::OtherSwarm => Exit::Config,
        // A catalog whose disk failed is of no more use than one that is away.
        Fault::Unavailable => Exit::Unreachable,
        Fault::Unspecified
        | Fault::Exists
        | Fault::NotDirectory
        | Fault::IsDirectory
        | Fault::NotEmpty
        | Fault::NameTooLong
        | Fault::Invalid
        | Fault::Stale
        | Fault::TooManyLinks
        | Fault::NoSpace
        | Fault::SendAgain
        | Fault::Expired => Exit::Failure,
    }
}

/// The code of a failed call of the operating system.
pub const fn of_io(kind: ErrorKind) -> Exit {
    match kind {
        ErrorKind::NotFound => Exit::NotFound,
        ErrorKind::PermissionDenied => Exit::Permission,
        ErrorKind::ConnectionRefused
        | ErrorKind::ConnectionReset
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::TimedOut => Exit::Unreachable,
        _ => Exit::Failure,
    }
}

/// A refusal in words, where the tracker gave none.
pub const fn words_of(fault: Fault) -> &'static str {
    match fault {
        Fault::Unspecified => "refused",
        Fault::NotFound => "no such file or folder",
        Fault::Exists => "exists already",
        Fault::NotDirectory => "not a folder",
        Fault::IsDirectory => "is a folder",
        Fault::NotEmpty => "folder is not empty",
        Fault::NameTooLong => "name is longer than 255 bytes",
        Fault::Invalid => "not a valid name or operation",
        Fault::Stale => "changed by somebody else meanwhile",
        Fault::TooManyLinks => "too many links",
        Fault::NoSpace => "the swarm is full",
        Fault::Permission => "not permitted",
        Fault::SendAgain => "segments were lost before they were committed",
        Fault::Unavailable => "the catalog is unavailable",
        Fault::Corrupt => "the catalog is corrupt",
        Fault::Expired => "the request is too old",
        Fault::OtherSwarm => "another swarm answered",
        Fault::NoAttribute => "no such extended attribute",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_that_the_documents_promise() {
        let codes: Vec<u8> = Exit::TABLE.iter().map(|(exit, _)| exit.code()).collect();
        assert_eq!(codes, [1, 2, 65, 66, 69, 77, 78, 130]);
        let documented = include_str!("../../../docs/CLI.md");
        for (exit, meaning) in Exit::TABLE {
            let row = format!("| {} | {meaning} |", exit.code());
            assert!(documented.contains(&row), "docs/CLI.md lacks {row:?}");
        }
    }

    #[test]
    fn a_status_keeps_what_the_tracker_meant() {
        let status = fault::to_status(Fault::NotFound, "/a/b: no such file or folder");
        let failure = Failure::status("stat", &status);
        assert_eq!((failure.exit, failure.message.as_str()), (Exit::NotFound, "stat: /a/b: no such file or folder"));
        assert_eq!(Failure::status("x", &tonic::Status::unavailable("gone")).exit, Exit::Unreachable);
        assert_eq!(Failure::status("x", &tonic::Status::data_loss("bad")).exit, Exit::Corrupt);
    }

    #[test]
    fn every_fault_has_words() {
        for number in 0.. {
            let Ok(fault) = Fault::try_from(number) else { break };
            assert!(!words_of(fault).is_empty());
            assert!(Failure::fault("x", fault, "").message.starts_with("x: "));
        }
    }
}
