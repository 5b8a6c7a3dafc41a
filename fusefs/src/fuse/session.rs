//! Mounts a file system at a folder, tells the kernel what to forget, and unmounts.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use fuser::{Config, MountOption, Notifier, SessionACL};
use swarm_proto::InodeNumber;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::convert::Numbers;
use super::{Operations, Runtimes};
use crate::fs::invalidation::Invalidation;
use crate::fs::{Access, FileSystem, Kernel};

/// Threads that take requests from the kernel; they only decode, the work is done elsewhere.
const THREADS_MOST: usize = 4;
/// A name that was looked up again at the very moment it changed is told twice.
///
/// The kernel looks an expired name up without the lock of its directory; an answer of ours that was
/// already on its way could then be filed after it was taken back.
const TOLD_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How a file system is mounted.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The folder; absolute.
    pub mountpoint: PathBuf,
    /// What `findmnt` shows as its source.
    pub source: String,
    /// Other users may use it too.
    pub allow_other: bool,
    /// What the swarm says of a file stands in extended attributes.
    pub xattr: bool,
}

/// A mounted file system. Dropping it does not unmount.
pub struct Session {
    ended: CancellationToken,
}

struct TellKernel {
    notifier: Notifier,
    numbers: Numbers,
}

impl Session {
    /// Mount `fs`; it is usable when this returns.
    ///
    /// Shape: `forget` is what the kernel must forget, told by a thread of its own.
    pub fn mount(
        fs: Arc<FileSystem>,
        config: &SessionConfig,
        forget: Receiver<Invalidation>,
        runtimes: Runtimes,
        tasks: TaskTracker,
    ) -> io::Result<Self> {
        let numbers = Numbers { root: fs.config().root };
        let (xattr, status) = (config.xattr, Default::default());
        let operations = Operations { fs: fs.clone(), numbers, runtimes, tasks, xattr, status };
        let session = fuser::Session::new(operations, &config.mountpoint, &options(config, fs.config().access))?;
        let tell = Arc::new(TellKernel { notifier: session.notifier(), numbers });
        fs.attach(tell.clone());
        std::thread::Builder::new().name("tell-kernel".into()).spawn(move || tell.run(&forget))?;
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        std::thread::Builder::new().name("fuse".into()).spawn(move || {
            if let Err(error) = session.run() {
                tracing::warn!(%error, "the session with the kernel ended");
            }
            drop(guard);
        })?;
        Ok(Self { ended })
    }

    /// Fires when the folder is no longer mounted and nobody uses it any more.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }
}

fn options(config: &SessionConfig, access: Access) -> Config {
    let mut options = Config::default();
    options.mount_options = vec![
        MountOption::FSName(config.source.clone()),
        // As root fuser drops its own option for this.
        MountOption::CUSTOM("subtype=swarmfs".to_owned()),
        MountOption::DefaultPermissions,
        // Anybody may put files into a swarm: their set-id bits and devices are stored, and mean nothing here.
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
    ];
    if access == Access::ReadOnly {
        options.mount_options.push(MountOption::RO);
    }
    options.acl = if config.allow_other { SessionACL::All } else { SessionACL::Owner };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, THREADS_MOST);
    options.n_threads = Some(threads);
    options.clone_fd = threads > 1 && may_open_device();
    options
}

/// With a device of its own for each thread, requests do not contend; that needs the device once more.
fn may_open_device() -> bool {
    std::fs::File::options().read(true).write(true).open(Path::new("/dev/fuse")).is_ok()
}

impl TellKernel {
    fn run(&self, forget: &Receiver<Invalidation>) {
        let mut again: VecDeque<(Instant, Invalidation)> = VecDeque::new();
        loop {
            let wait = again.front().map_or(TOLD_AGAIN_AFTER, |(due, _)| due.saturating_duration_since(Instant::now()));
            match forget.recv_timeout(wait) {
                Ok(one) => {
                    self.tell(&one);
                    if matches!(one, Invalidation::Name(..)) {
                        again.push_back((Instant::now() + TOLD_AGAIN_AFTER, one));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while again.front().is_some_and(|(due, _)| *due <= Instant::now()) {
                if let Some((_, one)) = again.pop_front() {
                    self.tell(&one);
                }
            }
        }
    }

    fn tell(&self, forget: &Invalidation) {
        let told = match forget {
            Invalidation::Name(parent, name) => {
                self.notifier.inval_entry(self.numbers.to_kernel(*parent), OsStr::from_bytes(name))
            }
            // A negative offset leaves the pages alone: dropping them could wait for a read of ours.
            Invalidation::Content(inode) => self.notifier.inval_inode(self.numbers.to_kernel(*inode), 0, 0),
            Invalidation::Attributes(inode) => self.notifier.inval_inode(self.numbers.to_kernel(*inode), -1, 0),
        };
        if let Err(error) = told {
            // ENODEV, ENOTCONN: unmounted meanwhile. ENOTEMPTY: a folder that is in use keeps its name.
            tracing::debug!(%error, ?forget, "tell the kernel to forget");
        }
    }
}

impl Kernel for TellKernel {
    fn forget_attributes(&self, inode: InodeNumber) {
        self.tell(&Invalidation::Attributes(inode));
    }
}
