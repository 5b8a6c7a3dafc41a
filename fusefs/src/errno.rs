//! The one table between refusals and the numbers that a program sees in `errno`.

use swarm_proto::Fault;
use swarm_seeder::tracker_client::TrackerError;

use crate::read::ReadError;

pub use rustix::io::Errno;

/// What a caller of the kernel is told for a refusal of the catalog.
pub const fn of_fault(fault: Fault) -> Errno {
    match fault {
        Fault::NotFound => Errno::NOENT,
        Fault::Exists => Errno::EXIST,
        Fault::NotDirectory => Errno::NOTDIR,
        Fault::IsDirectory => Errno::ISDIR,
        Fault::NotEmpty => Errno::NOTEMPTY,
        Fault::NameTooLong => Errno::NAMETOOLONG,
        Fault::Invalid => Errno::INVAL,
        Fault::Stale | Fault::OtherSwarm => Errno::STALE,
        Fault::NoAttribute => Errno::NODATA,
        Fault::TooManyLinks => Errno::MLINK,
        Fault::NoSpace => Errno::NOSPC,
        Fault::Permission => Errno::PERM,
        // Says more to a person than EIO: nothing is broken here, somebody did not answer.
        Fault::Unavailable => Errno::TIMEDOUT,
        // The writer sends again by itself; where it cannot, the bytes did not get there.
        Fault::SendAgain => Errno::IO,
        Fault::Corrupt | Fault::Expired | Fault::Unspecified => Errno::IO,
    }
}

/// What a caller of the kernel is told when the tracker did not do it.
pub fn of_tracker(error: &TrackerError) -> Errno {
    match error {
        TrackerError::Refused { fault, .. } => of_fault(*fault),
        TrackerError::Unreachable { .. } => Errno::TIMEDOUT,
        TrackerError::Nonsense { .. } | TrackerError::Stranger { .. } => Errno::PROTO,
    }
}

/// An error in words, for a note that a person reads.
pub fn words(error: Errno) -> String {
    std::io::Error::from(error).to_string()
}

/// What a caller of the kernel is told when a read brought no bytes.
pub const fn of_read(error: &ReadError) -> Errno {
    match error {
        // Promise 4: no bytes within the read timeout is EIO, whatever kept them.
        ReadError::TimedOut(_) | ReadError::NoHolder(_) | ReadError::Failed(_) | ReadError::Stopping => Errno::IO,
    }
}
