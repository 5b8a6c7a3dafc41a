//! A whole swarm on this machine: one tracker, some seeders, some mounts, and the person's tool.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::eventually;
use super::process::{Daemon, abort_switch, binary, force_unmount, free_port};

/// How a mount is made.
#[derive(Default, Clone)]
pub(crate) struct MountOptions {
    /// Further words of its command line.
    pub(crate) extra: Vec<String>,
    /// Its cache folder, if not one of its own.
    pub(crate) cache: Option<PathBuf>,
    /// Where it is mounted, if not in the swarm's folder.
    pub(crate) folder: Option<PathBuf>,
    /// Read the files of the seeders, which are all on this machine; else, as if they were not, over the network.
    pub(crate) local_reads: bool,
}

/// A mount, its process and its folder.
pub(crate) struct Mounted {
    pub(crate) daemon: Daemon,
    pub(crate) folder: PathBuf,
    pub(crate) cache: PathBuf,
}

impl Mounted {
    /// Unmount by stopping it, and wait.
    pub(crate) fn stop(&mut self) {
        let status = self.daemon.stop();
        assert!(status.success(), "mount ended with {status}:\n{}", self.daemon.log_tail());
    }

    pub(crate) fn kill(&mut self) {
        let switch = abort_switch(&self.folder);
        // A thread that tells the kernel of a name waits for whoever changes that folder, who waits for the daemon: if
        // that is killed meanwhile, neither ever ends by itself.
        self.daemon.kill_or(|| {
            eprintln!("a killed mount hangs in the kernel: it is aborted by {switch:?}");
            switch.map(|switch| std::fs::write(switch, "1"));
        });
        force_unmount(&self.folder);
    }

    pub(crate) fn restart(&mut self) {
        self.daemon.start();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One tracker and its seeders.
pub(crate) struct Swarm {
    pub(crate) tracker: Daemon,
    pub(crate) seeders: Vec<Daemon>,
    pub(crate) tracker_url: String,
    mounts_made: usize,
    folder: TempDir,
}

impl Swarm {
    /// A tracker that wants two replicas of everything, and `seeders` seeders, all announced.
    pub(crate) fn start(seeders: usize) -> Self {
        Self::start_with(seeders, &[], &[])
    }

    /// The same, with further words for the tracker and for each seeder.
    pub(crate) fn start_with(seeders: usize, tracker_extra: &[&str], seeder_extra: &[&str]) -> Self {
        let folder = TempDir::with_prefix_in("cluster-", env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (port, admin) = (free_port(), format!("127.0.0.1:{}", free_port()));
        let mut arguments = words(&[
            "--listen",
            &format!("127.0.0.1:{port}"),
            "--data",
            &folder.path().join("tracker").to_string_lossy(),
            "--admin-listen",
            &admin,
            "--replicas",
            "2",
        ]);
        arguments.extend(words(tracker_extra));
        let mut tracker = Daemon::new(folder.path(), "tracker", "swarm-tracker", arguments, admin);
        tracker.start();
        let mut swarm = Self {
            tracker,
            seeders: Vec::new(),
            tracker_url: format!("swarm://127.0.0.1:{port}"),
            mounts_made: 0,
            folder,
        };
        for _ in 0..seeders {
            swarm.add_seeder(seeder_extra);
        }
        swarm.wait_live(seeders);
        swarm
    }

    /// Start one more seeder.
    pub(crate) fn add_seeder(&mut self, extra: &[&str]) {
        let index = self.seeders.len();
        let admin = format!("127.0.0.1:{}", free_port());
        let listen = extra.iter().position(|word| *word == "--listen");
        let mut arguments = words(&["--tracker", &self.tracker_url]);
        if listen.is_none() {
            arguments.extend(["--listen".to_owned(), format!("127.0.0.1:{}", free_port())]);
        }
        arguments.extend(words(&["--data", &self.seeder_data(index).to_string_lossy(), "--admin-listen", &admin]));
        arguments.extend(words(extra));
        let mut seeder = Daemon::new(self.folder.path(), &format!("seeder-{index}"), "swarm-seeder", arguments, admin);
        seeder.start();
        self.seeders.push(seeder);
    }

    pub(crate) fn tracker_data(&self) -> PathBuf {
        self.folder.path().join("tracker")
    }

    pub(crate) fn seeder_data(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("seeder-{index}"))
    }

    /// A folder for the test's own files.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join("scratch").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    /// Wait until so many seeders are live, and none else.
    #[track_caller]
    pub(crate) fn wait_live(&self, seeders: usize) {
        eventually("all seeders live", Duration::from_secs(30), || {
            let peers = self.peers();
            let live = |peer: &&serde_json::Value| peer["kind"] == "seeder" && peer["state"] == "live";
            peers.as_array().is_some_and(|peers| peers.iter().filter(live).count() == seeders)
        });
    }

    /// Run the person's tool, not judging how it ends.
    pub(crate) fn try_cli(&self, arguments: &[&str]) -> Output {
        Command::new(binary("swarmfs"))
            .args(arguments)
            .env("SWARM_TRACKER", &self.tracker_url)
            .env("SWARM_LOCAL_READS", "false")
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Run the person's tool; it must succeed. Returns what it printed.
    #[track_caller]
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        let output = self.try_cli(arguments);
        assert!(
            output.status.success(),
            "swarmfs {} ended with {}:\n{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let text = self.cli(arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("swarmfs {arguments:?}: {error}:\n{text}"))
    }

    pub(crate) fn peers(&self) -> serde_json::Value {
        self.json(&["peers", "--json"])
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        self.json(&["status", "--json"])
    }

    /// Put a file or folder with so many replicas.
    #[track_caller]
    pub(crate) fn put(&self, source: &Path, target: &str, replicas: u32) {
        self.cli(&["put", "--replicas", &replicas.to_string(), &source.to_string_lossy(), target]);
    }

    /// A mount with a cache of its own.
    pub(crate) fn mount(&mut self) -> Mounted {
        self.mount_with(MountOptions::default())
    }

    pub(crate) fn mount_with(&mut self, options: MountOptions) -> Mounted {
        let url = self.tracker_url.clone();
        self.mount_at(&url, options)
    }

    /// Mount `url`, which may name a folder of the swarm.
    pub(crate) fn mount_at(&mut self, url: &str, options: MountOptions) -> Mounted {
        let index = self.mounts_made;
        self.mounts_made += 1;
        let folder = options.folder.unwrap_or_else(|| self.folder.path().join(format!("mount-{index}")));
        std::fs::create_dir_all(&folder).unwrap();
        let cache = options.cache.unwrap_or_else(|| self.folder.path().join(format!("cache-{index}")));
        let admin = format!("127.0.0.1:{}", free_port());
        let mut arguments =
            words(&["mount", "--foreground", "--cache-dir", &cache.to_string_lossy(), "--admin-listen", &admin]);
        if !options.local_reads {
            arguments.push("--no-local-reads".to_owned());
        }
        arguments.extend(options.extra);
        arguments.extend(words(&[url, &folder.to_string_lossy()]));
        let mut daemon = Daemon::new(self.folder.path(), &format!("mount-{index}"), "swarmfs", arguments, admin);
        daemon.start();
        Mounted { daemon, folder, cache }
    }

    /// Chunk bytes that each seeder has served since it started.
    pub(crate) fn served_bytes(&self) -> Vec<f64> {
        self.seeders.iter().map(|seeder| seeder.metrics().sum(SERVED_BYTES)).collect()
    }
}

/// Chunk bytes served, at any peer.
pub(crate) const SERVED_BYTES: &str = "swarm_peer_served_bytes_total";

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

/// Drop the kernel's caches, so that the next read reaches the programs (root).
pub(crate) fn drop_caches() {
    Command::new("sync").status().ok();
    if let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "3") {
        eprintln!("the kernel's caches stay ({error}); a later read may come from them");
    }
}
