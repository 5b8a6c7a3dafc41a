//! Unmounting, by root and by users, also of what a daemon that is gone has left behind.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use super::dead::{self, Life};
use super::table::{self, MountEntry};
use crate::errno::Errno;

/// Processes that are named to a person who cannot unmount.
const USERS_NAMED: usize = 5;
/// How long a daemon that stops waits for the last user before it detaches the folder.
const BUSY_PATIENCE: Duration = Duration::from_secs(1);
const BUSY_POLL: Duration = Duration::from_millis(50);

/// What to do with a mount that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenBusy {
    /// Leave it, and say who uses it.
    Refuse,
    /// Take it out of the tree now; it ends when the last user is gone.
    Detach,
}

/// Why a folder was not unmounted.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Nothing of ours is mounted exactly there.
    #[error("{}: {found}", folder.display())]
    NotOurs {
        /// The folder.
        folder: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// Somebody uses it.
    #[error("{} is in use{}", folder.display(), users_text(users))]
    Busy {
        /// The folder.
        folder: PathBuf,
        /// Who, as far as it can be seen.
        users: Vec<String>,
    },
    /// Somebody else mounted it.
    #[error("{}: only the user who mounted it, or root, may unmount it", .0.display())]
    NotAllowed(PathBuf),
    /// Its daemon is gone, what asks it hangs, and this process may not end that.
    #[error(
        "{0}: its process was killed and cannot end, and what uses the folder waits for it: as root, \
         `swarmfs umount {0}` ends it ({source})",
        folder.display(),
    )]
    Hangs {
        /// The folder.
        folder: PathBuf,
        /// Why this process may not.
        source: io::Error,
    },
    /// The system refused.
    #[error("unmount {}: {reason}", folder.display())]
    Failed {
        /// The folder.
        folder: PathBuf,
        /// Why.
        reason: String,
    },
}

fn users_text(users: &[String]) -> String {
    match users {
        [] => String::new(),
        users => format!(" by {}", users.join(", ")),
    }
}

/// Unmount one of our mounts; one whose daemon is gone also if it is in use.
pub fn unmount(folder: &Path, when_busy: WhenBusy) -> Result<MountEntry, UnmountError> {
    let failed = |error: io::Error| UnmountError::Failed { folder: folder.to_owned(), reason: error.to_string() };
    let not_ours = |found: String| UnmountError::NotOurs { folder: folder.to_owned(), found };
    let path = table::absolute(folder).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => not_ours("there is no such folder".to_owned()),
        _ => failed(error),
    })?;
    let entry = match table::at(&path).map_err(failed)? {
        Some(entry) if entry.is_ours() => entry,
        Some(entry) => return Err(not_ours(format!("a mount of type {}, not of swarmfs", entry.kind))),
        None => return Err(not_ours("nothing is mounted there".to_owned())),
    };
    if !detach_if_dead(&path, &entry)? {
        detach(&path, when_busy)?;
    }
    Ok(entry)
}

/// Take a mount whose daemon is gone out of the tree; nobody waits for it from then on. False: it is served.
fn detach_if_dead(path: &Path, entry: &MountEntry) -> Result<bool, UnmountError> {
    match dead::life_of(path, entry) {
        Life::Served => return Ok(false),
        Life::Gone => {}
        Life::Hangs(switch) => {
            let ended = match switch.abort() {
                Ok(()) => Ok(()),
                // Not everywhere are connections shown; root ends one along with its mount.
                Err(error) => force(path).map_err(|_| error),
            };
            ended.map_err(|source| UnmountError::Hangs { folder: path.to_owned(), source })?;
            tracing::warn!(folder = %path.display(), "the process of this mount was killed and hung: it is aborted");
        }
    }
    if is_at(path, &entry.device) {
        // Whoever uses it gets nothing but errors.
        detach(path, WhenBusy::Detach)?;
    }
    Ok(true)
}

/// Clear a mount of ours whose daemon is gone; false if there is none.
///
/// Errors: it is there and could not be cleared.
pub(super) fn clear_dead(path: &Path) -> Result<bool, UnmountError> {
    match table::at(path).ok().flatten().filter(MountEntry::is_ours) {
        Some(entry) => detach_if_dead(path, &entry),
        None => Ok(false),
    }
}

/// Unmount what this process mounted as `device`; nothing if it is gone already. Blocks.
pub(super) fn unmount_own(path: &Path, device: &str) -> Result<(), UnmountError> {
    let began = Instant::now();
    loop {
        if !is_at(path, device) {
            return Ok(());
        }
        match detach(path, WhenBusy::Refuse) {
            Err(UnmountError::Busy { users, .. }) if began.elapsed() >= BUSY_PATIENCE => {
                tracing::warn!(folder = %path.display(), ?users, "still in use: it is taken out of the tree");
                return detach(path, WhenBusy::Detach);
            }
            Err(UnmountError::Busy { .. }) => std::thread::sleep(BUSY_POLL),
            other => return other,
        }
    }
}

fn is_at(path: &Path, device: &str) -> bool {
    table::at(path).ok().flatten().is_some_and(|entry| entry.device == device)
}

/// Abort the connection of a mount, and take it out of the tree; for root.
fn force(path: &Path) -> rustix::io::Result<()> {
    rustix::mount::unmount(path, UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}

fn detach(path: &Path, when_busy: WhenBusy) -> Result<(), UnmountError> {
    let busy = || UnmountError::Busy { folder: path.to_owned(), users: table::users_of(path, USERS_NAMED) };
    let lazily = match when_busy {
        WhenBusy::Refuse => UnmountFlags::empty(),
        WhenBusy::Detach => UnmountFlags::DETACH,
    };
    match rustix::mount::unmount(path, lazily | UnmountFlags::NOFOLLOW) {
        Ok(()) => return Ok(()),
        Err(Errno::BUSY) => return Err(busy()),
        // A user unmounts with the helper's rights.
        Err(Errno::PERM) => {}
        Err(error) => {
            return Err(UnmountError::Failed { folder: path.to_owned(), reason: io::Error::from(error).to_string() });
        }
    }
    let mut last = "fusermount3 is not installed".to_owned();
    for helper in ["fusermount3", "fusermount"] {
        let mut command = Command::new(helper);
        command.arg("-u").args((when_busy == WhenBusy::Detach).then_some("-z")).arg("--").arg(path);
        let Ok(output) = command.stdin(Stdio::null()).output() else { continue };
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() {
            return Ok(());
        }
        if said.contains("busy") {
            return Err(busy());
        }
        if said.contains("ermission") || said.contains("not found in") {
            return Err(UnmountError::NotAllowed(path.to_owned()));
        }
        last = said;
    }
    Err(UnmountError::Failed { folder: path.to_owned(), reason: last })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_is_left_alone_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| unmount(path, WhenBusy::Detach).unwrap_err().to_string();
        assert!(refused(folder.path()).contains("nothing is mounted there"));
        assert!(refused(&folder.path().join("none/none")).contains("no such folder"));
        assert!(refused(Path::new("/proc")).contains("type proc"));
        assert!(!clear_dead(folder.path()).unwrap());
    }
}
