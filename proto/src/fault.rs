//! The one table between refusals of the catalog and `tonic::Status`.
//!
//! A [`Fault`] travels as the metadata `swarm-fault` beside a gRPC code, so that a client that knows
//! only gRPC still gets a sensible code, and ours get back exactly what the tracker meant.

use tonic::{Code, Status, metadata::MetadataValue};

pub use crate::v1::Fault;

/// Metadata key under which a fault travels.
pub const FAULT_KEY: &str = "swarm-fault";

/// A status that says `message` and carries `fault`.
pub fn to_status(fault: Fault, message: impl Into<String>) -> Status {
    let mut status = Status::new(code_of(fault), message);
    status.metadata_mut().insert(FAULT_KEY, MetadataValue::from_static(fault.as_str_name()));
    status
}

/// What a status means; statuses that are not ours are read by their code.
pub fn of_status(status: &Status) -> Fault {
    let ours = status.metadata().get(FAULT_KEY).and_then(|value| value.to_str().ok()).and_then(Fault::from_str_name);
    ours.unwrap_or(match status.code() {
        Code::NotFound => Fault::NotFound,
        Code::AlreadyExists => Fault::Exists,
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition | Code::Unimplemented => Fault::Invalid,
        Code::PermissionDenied | Code::Unauthenticated => Fault::Permission,
        Code::ResourceExhausted => Fault::NoSpace,
        Code::Aborted => Fault::Stale,
        Code::DataLoss => Fault::Corrupt,
        _ => Fault::Unavailable,
    })
}

/// The gRPC code that comes nearest.
pub const fn code_of(fault: Fault) -> Code {
    match fault {
        Fault::Unspecified => Code::Unknown,
        Fault::NotFound | Fault::NoAttribute => Code::NotFound,
        Fault::Exists => Code::AlreadyExists,
        Fault::NotDirectory | Fault::IsDirectory | Fault::NotEmpty | Fault::SendAgain | Fault::OtherSwarm => {
            Code::FailedPrecondition
        }
        Fault::NameTooLong | Fault::Invalid => Code::InvalidArgument,
        // Aborted, as a transaction that lost its race.
        Fault::Stale | Fault::Expired => Code::Aborted,
        Fault::TooManyLinks | Fault::NoSpace => Code::ResourceExhausted,
        Fault::Permission => Code::PermissionDenied,
        Fault::Unavailable => Code::Unavailable,
        Fault::Corrupt => Code::DataLoss,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_survives_the_wire() {
        for number in 0.. {
            let Ok(fault) = Fault::try_from(number) else { break };
            assert_eq!(of_status(&to_status(fault, "why")), fault);
        }
    }

    #[test]
    fn a_foreign_status_is_read_by_its_code() {
        assert_eq!(of_status(&Status::not_found("x")), Fault::NotFound);
        assert_eq!(of_status(&Status::unavailable("x")), Fault::Unavailable);
    }
}
