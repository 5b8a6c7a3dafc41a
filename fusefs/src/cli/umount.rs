//! `swarmfs umount`: ends a mount, and waits until its daemon has written its cache down.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use clap::Args;

use super::exit::{Exit, Failure, Outcome, of_io};
use super::show::warn;
use super::status::counted;
use crate::mount::status::{self, MountStatus};
use crate::mount::unmount::{UnmountError, WhenBusy, unmount};
use crate::write::spool::{State, notes_in};

/// How long a mount may take to say who its process is.
const STATUS_PATIENCE: Duration = Duration::from_secs(1);
/// How long that process may take to end.
const END_PATIENCE: Duration = Duration::from_secs(20);
const END_POLL: Duration = Duration::from_millis(20);

/// End a mount
#[derive(Debug, Args)]
pub struct UmountCommand {
    /// Folders that are mounted
    #[arg(value_name = "DIR", required = true)]
    folders: Vec<PathBuf>,
    /// Take the folder out of the tree at once, also if it is in use
    #[arg(short, long)]
    lazy: bool,
}

impl UmountCommand {
    /// Unmount each folder; goes on after a failure and reports the first.
    pub fn run(&self) -> Outcome {
        let mut first = None;
        for folder in &self.folders {
            if let Err(failure) = self.one(folder) {
                match first {
                    None => first = Some(failure),
                    Some(_) => warn(&failure),
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn one(&self, folder: &Path) -> Outcome {
        let asked = status_of(folder);
        let when_busy = if self.lazy { WhenBusy::Detach } else { WhenBusy::Refuse };
        let unmounted = match unmount(folder, when_busy) {
            // Nobody is in there but our own question, which got no answer.
            Err(UnmountError::Busy { users, .. }) if asked.is_err() && users.is_empty() => {
                unmount(folder, WhenBusy::Detach)
            }
            other => other,
        };
        unmounted.map_err(|error| failure(&error))?;
        let status = asked.ok().flatten();
        let Some(status) = status.filter(|status| status.ends_with_mount && !self.lazy) else { return Ok(()) };
        wait_for_end(&status);
        match status.spool_dir {
            Some(spool) => all_saved(folder, Path::new(&spool)),
            None => Ok(()),
        }
    }
}

/// What the mount says of itself. Err: it did not answer in time; it may be hung, and still be unmounted.
fn status_of(folder: &Path) -> Result<Option<MountStatus>, RecvTimeoutError> {
    let (sender, receiver) = mpsc::channel();
    let folder = folder.to_owned();
    // Not waited for if it hangs: the process ends before it does.
    std::thread::spawn(move || drop(sender.send(status::of_mount(&folder))));
    receiver.recv_timeout(STATUS_PATIENCE)
}

/// Errors: something that was written there is not saved.
fn all_saved(folder: &Path, spool: &Path) -> Outcome {
    let left = notes_in(spool).map_err(|error| Failure::io(spool.display(), &error))?;
    if left.is_empty() {
        return Ok(());
    }
    let goes_on = match left.iter().filter(|note| note.state == State::Saving).count() {
        0 => "with a mount that has this spool, `swarmfs spool retry` has them saved".to_owned(),
        all if all == left.len() => "the next mount with this spool goes on with them".to_owned(),
        some => format!(
            "the next mount with this spool goes on with {some} of them, the others wait for `swarmfs spool retry`"
        ),
    };
    let files = counted(left.len() as u64, "file");
    let what = format!("{} is unmounted, but {files} that were written are not saved", folder.display());
    Err(Failure::new(Exit::Failure, what)
        .hint(format!("`swarmfs spool list {}` shows them; {goes_on}", spool.display())))
}

fn wait_for_end(MountStatus { pid, unsaved_files, .. }: &MountStatus) {
    if *unsaved_files > 0 {
        let files = counted(*unsaved_files, "file");
        warn(format!("waiting for {files} to be saved; Ctrl-C leaves that to process {pid}"));
    }
    let process = PathBuf::from(format!("/proc/{pid}"));
    let began = Instant::now();
    let ended = || {
        // A child that nobody has waited for yet is as good as gone.
        let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
        stat.is_empty() || stat.rsplit(')').next().is_some_and(|after| after.trim_start().starts_with('Z'))
    };
    while !ended() {
        // A save ends by itself, in a file of the swarm or in a note of the spool.
        if *unsaved_files == 0 && began.elapsed() > END_PATIENCE {
            warn(format!("unmounted, but its process {pid} is still writing its cache down"));
            return;
        }
        std::thread::sleep(END_POLL);
    }
}

fn failure(error: &UnmountError) -> Failure {
    let message = error.to_string();
    match error {
        UnmountError::NotOurs { .. } => Failure::new(Exit::NotFound, message),
        UnmountError::Busy { .. } => {
            Failure::new(Exit::Failure, message).hint("leave the folder and close its files, or add -l")
        }
        UnmountError::NotAllowed(_) | UnmountError::Hangs { .. } => Failure::new(Exit::Permission, message),
        UnmountError::Failed { .. } => Failure::new(of_io(std::io::ErrorKind::Other), message),
    }
}
