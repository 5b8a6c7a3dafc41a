//! What the fetcher can be told. Data only.

use std::time::Duration;

use swarm_proto::PeerId;
use swarm_proto::settings::ByteCount;

/// How this peer fetches.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// This peer: never asked, and named in every request so that uploads can be shared fairly.
    pub me: PeerId,
    /// Its failure domain; holders there are preferred. Empty: the default one.
    pub zone: String,
    /// How long a connection may take to come up.
    pub connect_timeout: Duration,
    /// Longest that one request may take, however slow the peer is; a shorter deadline follows from the
    /// peer's measured rate.
    pub request_timeout: Duration,
    /// Longest that one call to the locator may take.
    pub locate_timeout: Duration,
    /// Bytes a second that are asked for; `None`: as many as there are.
    pub download_limit: Option<ByteCount>,
    /// Read the files of peers that run on this machine, where they lend them, and not over the network.
    pub local_reads: bool,
    /// When a peer is no longer asked at all.
    pub ban: BanRules,
    /// Verified chunk trees kept in memory.
    pub trees_kept: usize,
    /// Segments whose holders are remembered.
    pub locations_kept: usize,
    /// A connection that was not used for so long is closed.
    pub idle_connection: Duration,
}

impl SwarmConfig {
    /// The defaults, for the peer `me` in `zone`.
    pub fn new(me: PeerId, zone: impl Into<String>) -> Self {
        Self {
            me,
            zone: zone.into(),
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(15),
            locate_timeout: Duration::from_secs(5),
            download_limit: None,
            local_reads: true,
            ban: BanRules::default(),
            // 8 KiB for a segment of 4 MiB: 32 MiB at most.
            trees_kept: 4096,
            locations_kept: 65_536,
            idle_connection: Duration::from_secs(300),
        }
    }
}

/// When a peer that answers wrongly is no longer asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BanRules {
    /// So many different corrupt segments …
    pub segments: usize,
    /// … within so long …
    pub within: Duration,
    /// … keep a peer out for so long; the first corrupt answer afterwards bans it again.
    pub lasts: Duration,
}

impl Default for BanRules {
    fn default() -> Self {
        Self { segments: 3, within: Duration::from_secs(600), lasts: Duration::from_secs(3600) }
    }
}
