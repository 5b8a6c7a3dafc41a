//! Mounts whose daemon is gone: how they are known, and how the kernel is made to let go of them.
//!
//! A daemon that was killed may not end: a thread of it that tells the kernel of a name waits there for whoever holds that
//! folder, who waits for the daemon. Until somebody aborts the connection each call into such a mount hangs.
//!
//! Invariant: nothing is asked of a mount without a deadline, and no connection is aborted that a living process serves.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::table::MountEntry;
use crate::errno::Errno;

/// How long a mount may take to say that it lives; it answers from memory.
const PATIENCE: Duration = Duration::from_secs(1);

/// What became of a mount's daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Life {
    /// It serves, or may do so again: it is slow, or stopped.
    Served,
    /// It is gone, and the kernel says so to everybody.
    Gone,
    /// It is gone, and whoever asks the mount waits until the connection is aborted.
    Hangs(Switch),
}

/// What became of the daemon of one of our mounts.
///
/// Cost: [`PATIENCE`] at most, and the open files of all processes if it does not answer.
pub(super) fn life_of(path: &Path, entry: &MountEntry) -> Life {
    match answer_of(path) {
        Some(Err(Errno::NOTCONN | Errno::CONNABORTED)) => Life::Gone,
        Some(_) => Life::Served,
        None => match entry.connection() {
            Some(connection) if !is_served(connection) => Life::Hangs(Switch::of(connection)),
            _ => Life::Served,
        },
    }
}

/// What the mount says; none: nothing, in time.
fn answer_of(path: &Path) -> Option<Result<(), Errno>> {
    let (sender, answer) = mpsc::channel();
    let path = path.to_owned();
    // Not waited for if it hangs: it ends with the connection or with this process.
    std::thread::spawn(move || sender.send(rustix::fs::statfs(path).map(|_| ())).ok());
    answer.recv_timeout(PATIENCE).ok()
}

/// Whether a process has the connection open. Dying ones show no files, and others' are not shown to everybody: what
/// cannot be known counts as served.
fn is_served(connection: &str) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else { return true };
    let mut folders = processes.flatten().map(|process| process.path());
    folders.any(|process| {
        let files = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let mut devices = files.filter(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.ends_with("dev/fuse")));
        devices.any(|device| {
            let said = std::fs::read_to_string(process.join("fdinfo").join(device.file_name())).unwrap_or_default();
            serves(&said, connection)
        })
    })
}

/// Whether an open `/dev/fuse` may be the other end of a connection; kernels before 6.17 do not say of which it is.
fn serves(fdinfo: &str, connection: &str) -> bool {
    let named = fdinfo.lines().find_map(|line| line.strip_prefix("fuse_connection:"));
    named.is_none_or(|named| named.trim() == connection)
}

/// Where the kernel is told to abort a connection. Root may, and whoever mounted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Switch(PathBuf);

impl Switch {
    fn of(connection: &str) -> Self {
        Self(Path::new("/sys/fs/fuse/connections").join(connection).join("abort"))
    }

    /// All that wait for the daemon get an error.
    pub(super) fn abort(&self) -> io::Result<()> {
        std::fs::write(&self.0, "1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_device_serves_the_connection_that_it_names_and_any_if_it_names_none() {
        let named = "pos:\t0\nflags:\t02100002\nfuse_connection:\t43\n";
        assert!(serves(named, "43"));
        assert!(!serves(named, "4") && !serves(named, "143"));
        assert!(serves("pos:\t0\nflags:\t02100002\n", "43"));
    }

    #[test]
    fn what_answers_lives() {
        assert_eq!(answer_of(Path::new("/")), Some(Ok(())));
        assert_eq!(answer_of(Path::new("/none/none")), Some(Err(Errno::NOENT)));
    }
}
