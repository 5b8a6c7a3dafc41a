//! What a mount says of itself: one JSON object, read from the file `.swarmfs-status` in its root.
//!
//! Not a socket: whoever may look at the mount may read it, and nothing needs to know where the daemon keeps
//! its things. Not an extended attribute: while a mount has any, `ls -l` asks for some of every file.

use serde::{Deserialize, Serialize};

/// State of one mount. Fields are added, never renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStatus {
    /// Version of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// That process ends when the folder is unmounted.
    pub ends_with_mount: bool,
    /// The tracker, and the folder of the swarm that is shown.
    pub source: String,
    /// Where.
    pub mountpoint: String,
    /// The tracker pushes changes: names and attributes are kept for long.
    pub live: bool,
    /// The kernel reads complete cached files by itself.
    pub passthrough: bool,
    /// Why it does not; absent while it does.
    pub no_passthrough_because: Option<String>,
    /// The kernel writes files that are made or emptied into the spool by itself.
    #[serde(default)]
    pub passthrough_writes: bool,
    /// Why it does not; absent while it does.
    #[serde(default)]
    pub no_passthrough_writes_because: Option<String>,
    /// Files open now.
    pub open_files: u64,
    /// Reads answered by the daemon since it started.
    pub reads_total: u64,
    /// Bytes of those.
    pub read_bytes_total: u64,
    /// Folder of the cache.
    pub cache_dir: String,
    /// Bytes in it.
    pub cache_used_bytes: u64,
    /// Most bytes in it.
    pub cache_size_bytes: u64,
    /// Folder of what is not saved yet; absent if the mount is read-only.
    #[serde(default)]
    pub spool_dir: Option<String>,
    /// Files that are open for writing, or not saved yet.
    #[serde(default)]
    pub unsaved_files: u64,
    /// Files that are saved, and of which seeders hold too few replicas: the rest is sent when more of them are up.
    #[serde(default)]
    pub owed_files: u64,
    /// Bytes of those that they lack.
    #[serde(default)]
    pub owed_bytes: u64,
    /// This mount as a peer.
    pub peer_id: String,
    /// Where other peers reach it; absent if it shares nothing.
    pub peer_address: Option<String>,
    /// Where metrics are shown; absent: nowhere.
    pub admin_address: Option<String>,
}

/// The status of the mount at a folder; none if it is not one of ours, or does not answer.
///
/// Cost: blocks for as long as the mount takes to answer.
pub fn of_mount(mountpoint: &std::path::Path) -> Option<MountStatus> {
    let text = std::fs::read(mountpoint.join(crate::fuse::status_file::NAME)).ok()?;
    serde_json::from_slice(&text).ok()
}
