//! A swarm without a mount, and the tool as a child process.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use swarm_fusefs::up::state::{Memory, StateFolder};
use swarm_fusefs::up::{Up, UpConfig};
use swarm_proto::settings::ByteCount;

/// A swarm of three seeders with two replicas.
pub(crate) struct Swarm {
    runtime: Option<tokio::runtime::Runtime>,
    up: Option<Up>,
    url: String,
    folder: tempfile::TempDir,
}

pub(crate) fn config(state: &Path) -> UpConfig {
    UpConfig {
        mount_at: None,
        state: StateFolder { path: state.to_owned() },
        listen: [127, 0, 0, 1].into(),
        advertise: None,
        seeders: 3,
        replicas: 2,
        capacity: ByteCount(0),
        allow_other: false,
    }
}

impl Swarm {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        std::fs::create_dir(&state).unwrap();
        // Ports of their own, so that tests do not meet; and no folder `welcome`.
        let memory = Memory { tracker_port: 0, seeder_ports: vec![0; 3], ..Memory::default() };
        StateFolder { path: state }.remember(&memory).unwrap();
        let mut swarm = Self { runtime: None, up: None, url: String::new(), folder };
        swarm.begin();
        swarm
    }

    fn begin(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let up = runtime.block_on(Up::start(config(&self.folder.path().join("state"))));
        let up = up.unwrap_or_else(|error| panic!("start the swarm: {error}"));
        self.url = up.tracker_url();
        (self.runtime, self.up) = (Some(runtime), Some(up));
    }

    /// Stop all of it and start it again.
    pub(crate) fn restart(&mut self) {
        self.end();
        self.begin();
    }

    fn end(&mut self) {
        if let (Some(runtime), Some(up)) = (self.runtime.take(), self.up.take()) {
            runtime.block_on(up.stop());
            runtime.shutdown_timeout(std::time::Duration::from_secs(5));
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A path for the test's own files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = tool();
        command.env("SWARM_TRACKER", &self.url).current_dir(self.folder.path());
        command
    }

    /// Run the tool to its end, whatever that is.
    pub(crate) fn try_run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Run the tool; it must succeed. Returns what it printed.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.try_run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "swarmfs {arguments:?} ended with {}:\n{said}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.run(arguments)).unwrap()
    }

    /// Run the tool; it must fail with `code`. Returns what it said.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.try_run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "swarmfs {arguments:?}:\n{said}");
        said
    }

    /// Run the tool with `input` as its standard input.
    #[track_caller]
    pub(crate) fn feed(&self, arguments: &[&str], input: &[u8]) {
        let mut child = self.command().args(arguments).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        assert!(child.wait().unwrap().success(), "swarmfs {arguments:?}");
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.end();
    }
}

/// The tool, knowing nothing of this machine.
pub(crate) fn tool() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swarmfs"));
    command.env_clear().env("XDG_STATE_HOME", "/nonexistent");
    command
}

/// Bytes that do not repeat.
pub(crate) fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// All of a tree that a copy must keep: kind, mode, time and content of each path.
pub(crate) fn tree(root: &Path) -> BTreeMap<OsString, String> {
    let mut found = BTreeMap::new();
    let mut rest = vec![root.to_owned()];
    while let Some(path) = rest.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let (what, time) = if kind.is_dir() {
            rest.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            ("folder".to_owned(), true)
        } else if kind.is_symlink() {
            (format!("link to {:?}", std::fs::read_link(&path).unwrap()), false)
        } else if kind.is_file() {
            (format!("{} {}", meta.len(), blake3::hash(&std::fs::read(&path).unwrap())), true)
        } else {
            (format!("fifo {} socket {}", kind.is_fifo(), kind.is_socket()), true)
        };
        let time = if time { format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()) } else { String::new() };
        let name = path.strip_prefix(root).unwrap().as_os_str();
        let name = OsString::from(OsStrExt::from_bytes(name.as_bytes()) as &std::ffi::OsStr);
        found.insert(name, format!("{what} {:o} {time}", meta.mode()));
    }
    found
}
