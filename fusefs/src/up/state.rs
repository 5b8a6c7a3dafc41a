//! Where `swarmfs up` keeps its swarm, and what it remembers of it.
//!
//! Invariant: while the lock file is locked, exactly one process runs the swarm of that folder.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use swarm_seeder::tracker_client::DEFAULT_PORT;

/// Name of the file that remembers the addresses.
const MEMORY: &str = "up.json";
/// Name of the file whose lock says that a process runs this swarm.
const LOCK: &str = "up.lock";

/// The folder in which a swarm of `swarmfs up` lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFolder {
    /// The folder.
    pub path: PathBuf,
}

/// What is remembered from one start to the next, so that addresses given to others stay right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Port of the tracker.
    pub tracker_port: u16,
    /// Port of each seeder, in order.
    pub seeder_ports: Vec<u16>,
    /// Address at which this machine reaches the tracker now, or reached it last.
    pub tracker: String,
    /// Where it is or was mounted.
    pub mounted_at: Option<PathBuf>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            tracker_port: DEFAULT_PORT,
            seeder_ports: Vec::new(),
            tracker: format!("127.0.0.1:{DEFAULT_PORT}"),
            mounted_at: None,
        }
    }
}

/// Held by the process that runs the swarm; dropping it lets another one.
#[derive(Debug)]
pub struct StateLock {
    /// Its lock is what counts.
    _file: File,
}

impl StateFolder {
    /// `$XDG_STATE_HOME/swarmfs`, `~/.local/state/swarmfs`, or for a user without a home `/var/lib/swarmfs`.
    ///
    /// Shape: `variable` reads the environment.
    pub fn default_for(variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let state = variable("XDG_STATE_HOME").filter(|path| path.is_absolute());
        let home = variable("HOME").filter(|path| path.is_absolute() && path != Path::new("/"));
        let path = match (state, home) {
            (Some(state), _) => state.join("swarmfs"),
            (None, Some(home)) => home.join(".local/state/swarmfs"),
            (None, None) => PathBuf::from("/var/lib/swarmfs"),
        };
        Self { path }
    }

    /// Data of the tracker.
    pub fn tracker(&self) -> PathBuf {
        self.path.join("tracker")
    }

    /// Data of seeder `index`, from 0.
    pub fn seeder(&self, index: usize) -> PathBuf {
        self.path.join(format!("seeder-{}", index + 1))
    }

    /// Cache of the mount.
    pub fn cache(&self) -> PathBuf {
        self.path.join("cache")
    }

    /// Take the swarm of this folder; none if another process runs it.
    ///
    /// Errors: the folder cannot be made or written.
    pub fn lock(&self) -> io::Result<Option<StateLock>> {
        std::fs::create_dir_all(&self.path)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(self.path.join(LOCK))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(StateLock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What was remembered; none if nothing was, or what is there cannot be read.
    pub fn remembered(&self) -> Option<Memory> {
        let text = std::fs::read(self.path.join(MEMORY)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Remember, replacing the file as one.
    pub fn remember(&self, memory: &Memory) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(memory)?;
        let partial = self.path.join(format!("{MEMORY}.new"));
        let mut file = File::create(&partial)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(partial, self.path.join(MEMORY))
    }

    /// Address of the swarm that was last brought up here, if one was.
    pub fn tracker_address(&self) -> Option<String> {
        self.remembered().map(|memory| memory.tracker)
    }
}

/// The address to bind: the remembered port if it is free, else any.
pub fn free_port(ip: std::net::IpAddr, wanted: u16) -> io::Result<SocketAddr> {
    let bound = std::net::TcpListener::bind((ip, wanted)).or_else(|_| std::net::TcpListener::bind((ip, 0)))?;
    bound.local_addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_follows_the_xdg_rules() {
        let with = |pairs: &'static [(&'static str, &'static str)]| {
            StateFolder::default_for(move |name| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
            })
            .path
        };
        assert_eq!(with(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]), Path::new("/s/swarmfs"));
        assert_eq!(with(&[("XDG_STATE_HOME", "relative"), ("HOME", "/h")]), Path::new("/h/.local/state/swarmfs"));
        assert_eq!(with(&[]), Path::new("/var/lib/swarmfs"));
    }

    #[test]
    fn one_process_at_a_time_and_memory_lasts() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder { path: folder.path().join("a/b") };
        let lock = state.lock().unwrap().expect("free");
        assert!(state.lock().unwrap().is_none());
        drop(lock);
        assert!(state.lock().unwrap().is_some());
        assert_eq!(state.remembered(), None);
        let memory = Memory { seeder_ports: vec![1, 2], ..Memory::default() };
        state.remember(&memory).unwrap();
        assert_eq!(state.remembered(), Some(memory));
    }

    #[test]
    fn a_taken_port_is_replaced() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let wanted = taken.local_addr().unwrap();
        let got = free_port(wanted.ip(), wanted.port()).unwrap();
        assert_ne!(got.port(), wanted.port());
        drop(taken);
        assert_eq!(free_port(wanted.ip(), wanted.port()).unwrap(), wanted);
    }
}
