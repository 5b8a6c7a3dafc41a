//! The ceilings: file systems that answer from memory, with the settings that ours has.

mod endless;
mod tree;
mod writable;

use std::path::Path;
use std::time::Duration;

use fuser::{BackgroundSession, Config, Filesystem, MountOption, SessionACL};

/// How long the kernel may keep what it is told.
const TTL: Duration = Duration::from_secs(3_600);

/// Mount one file, `large`, of this length, to be read; dropping the session unmounts.
pub(crate) fn mount(folder: &Path, length: u64) -> BackgroundSession {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::RO];
    config.n_threads = Some(2);
    mount_with(folder, endless::Endless::new(length), config)
}

/// Mount an empty folder whose files and names are kept in memory; dropping the session unmounts.
pub(crate) fn mount_writable(folder: &Path) -> BackgroundSession {
    let mut config = Config::default();
    config.mount_options =
        vec![MountOption::DefaultPermissions, MountOption::NoSuid, MountOption::NoDev, MountOption::NoAtime];
    config.n_threads = Some(std::thread::available_parallelism().map_or(1, usize::from).clamp(1, 4));
    config.clone_fd = true;
    mount_with(folder, writable::Writable::default(), config)
}

fn mount_with(folder: &Path, fs: impl Filesystem, mut config: Config) -> BackgroundSession {
    std::fs::create_dir_all(folder).expect("make the mount point");
    config.mount_options.push(MountOption::FSName("memory".to_owned()));
    config.acl = SessionACL::Owner;
    let session = fuser::spawn_mount(fs, folder, &config).expect("mount, as root and with /dev/fuse");
    super::mounts::read_ahead_1_mib(folder);
    session
}
