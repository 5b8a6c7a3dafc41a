//! Where a test works: one or two mounts of a swarm of its own, or a plain folder.

use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use tempfile::TempDir;

use crate::harness::swarm::{Mounted, drop_caches};
use crate::harness::{MountOptions, Swarm};

/// Names a plain folder to work in instead of a mount; `mount` is no folder.
const PLAIN_FOLDER: &str = "SWARM_TEST_FOLDER";

/// A folder to work in, and what is behind it. What is mounted goes before what it is mounted from.
pub(crate) struct Place {
    views: Vec<PathBuf>,
    mounts: Vec<Mounted>,
    swarm: Option<Swarm>,
    folder: TempDir,
}

impl Place {
    /// One mount with two seeders and two replicas.
    pub(crate) fn one() -> Self {
        Self::with_views(1, &[])
    }

    /// The same, mounted with these flags.
    pub(crate) fn one_with(flags: &[&str]) -> Self {
        Self::with_views(1, flags)
    }

    /// The same with two mounts; of a plain folder both views are that folder.
    pub(crate) fn two() -> Self {
        Self::with_views(2, &[])
    }

    /// One or two mounts in which the kernel writes by itself what is made or emptied, where it can.
    pub(crate) fn passing(views: usize) -> Self {
        Self::with_views(views, &["--passthrough-writes"])
    }

    fn with_views(views: usize, flags: &[&str]) -> Self {
        // Modes are compared, and other users work in it.
        rustix::process::umask(Mode::from_raw_mode(0o022));
        match std::env::var_os(PLAIN_FOLDER) {
            Some(plain) if plain != "mount" => {
                let folder = TempDir::with_prefix_in("programs-", plain).unwrap();
                let views = vec![folder.path().to_owned(); views];
                Self { views, mounts: Vec::new(), swarm: None, folder }
            }
            _ => Self::mounted(views, flags),
        }
    }

    fn mounted(views: usize, flags: &[&str]) -> Self {
        // Not in the target folder, which may lie where only its owner can go; the suites change user.
        let folder = TempDir::with_prefix("programs-").unwrap();
        let mut swarm = Swarm::start(2);
        let mut mounts = Vec::new();
        for index in 0..views {
            let options = MountOptions {
                extra: ["--allow-other"].iter().chain(flags).map(|flag| (*flag).to_owned()).collect(),
                folder: Some(folder.path().join(format!("mount-{index}"))),
                ..MountOptions::default()
            };
            mounts.push(swarm.mount_with(options));
        }
        let views = mounts.iter().map(|mount| mount.folder.clone()).collect();
        Self { views, mounts, swarm: Some(swarm), folder }
    }

    /// Whether it is a mount, with all that a mount can be asked, or a plain folder.
    pub(crate) fn is_mount(&self) -> bool {
        self.swarm.is_some()
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.views[0]
    }

    /// The same folder as the second mount shows it.
    pub(crate) fn second(&self) -> &Path {
        &self.views[1]
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.views[0].join(name)
    }

    /// Take the first mount down and up again, so that what follows is read from the swarm.
    pub(crate) fn remount(&mut self) {
        if let Some(mount) = self.mounts.first_mut() {
            mount.stop();
            drop_caches();
            mount.restart();
        }
    }

    /// The end of a test that went well: the mounts unmount by themselves, and the swarm holds all that it should.
    pub(crate) fn end(mut self) {
        self.mounts.iter_mut().for_each(Mounted::stop);
        if let Some(swarm) = &self.swarm {
            let status = swarm.status();
            assert_eq!(status["segments"]["missing"], 0, "{status}");
            assert_eq!(status["segments"]["corrupt"], 0, "{status}");
        }
    }
}

/// A folder on the local disk, for what is compared with.
pub(crate) fn scratch() -> TempDir {
    TempDir::with_prefix_in("scratch-", env!("CARGO_TARGET_TMPDIR")).unwrap()
}
