//! What a mount can be told, and its defaults.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use swarm_proto::admin::LogFormat;
use swarm_proto::settings::{ByteCount, Span};
use swarm_proto::{CHUNK_BYTES, MAX_SEGMENT_BYTES};
use swarm_seeder::peer::Sharing;
use swarm_seeder::tracker_client::TrackerAddress;

/// Settings of a mount: flags > `SWARM_*` environment > file > these defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MountConfig {
    /// The tracker and, after it, the folder of the swarm that is shown; empty: what `swarmfs up` runs on
    /// this machine.
    pub tracker: String,
    /// Where fetched bytes are kept; none: a folder of its own for this tracker and mount point below
    /// `$XDG_CACHE_HOME/swarmfs`.
    pub cache_dir: Option<PathBuf>,
    /// Most bytes of the cache; 0: nothing is kept on disk.
    pub cache_size: ByteCount,
    /// Where what is written lies until it is saved; none: a folder of the cache's.
    pub spool_dir: Option<PathBuf>,
    /// Length at which files are cut.
    pub segment_size: ByteCount,
    /// Share of the cache's disk that stays free, 0 to 1.
    pub free_space_ratio: f64,
    /// Most bytes fetched ahead of one reader.
    pub max_readahead: ByteCount,
    /// Most bytes in memory for all readers; none: 256 MiB, or a quarter of what the process may use.
    pub memory: Option<ByteCount>,
    /// Longest that a read may take.
    pub read_timeout: Span,
    /// A close returns at once, and what was written is saved meanwhile: lost with this machine until then.
    pub writeback: bool,
    /// The kernel writes files that are made or emptied into the spool by itself, where it can.
    pub passthrough_writes: bool,
    /// Longest that saving a file may go without progress.
    pub write_timeout: Span,
    /// Longest that a question to the tracker may take.
    pub metadata_timeout: Span,
    /// How long the kernel may keep names and attributes while the tracker pushes changes.
    pub metadata_ttl: Span,
    /// Other users may use the mount.
    pub allow_other: bool,
    /// Files have extended attributes, and what the swarm says of a file is among them. Programs that look for others, as `ls -l`
    /// does, then ask for them of every file.
    pub xattr: bool,
    /// Refuse every change.
    pub read_only: bool,
    /// Mount over a folder that has something in it.
    pub nonempty: bool,
    /// Serve what is cached to other peers.
    pub share: bool,
    /// Most bytes a second given to others.
    pub upload_limit: Option<ByteCount>,
    /// Most bytes a second fetched from others.
    pub download_limit: Option<ByteCount>,
    /// Read from the files of seeders that run on this machine, and not over the network.
    pub local_reads: bool,
    /// Where other peers reach this mount; port 0: any free one.
    pub listen: SocketAddr,
    /// host:port at which others reach it, if not the listening address.
    pub advertise: Option<String>,
    /// Zone of this machine: peers there are preferred; empty: the default one.
    pub zone: String,
    /// Name of this machine, as to failures its address if empty; conflict copies are named after it.
    pub host: String,
    /// With the tracker away, answer names and attributes from what was known last.
    pub offline_ok: bool,
    /// Where metrics and readiness are shown; none: nowhere.
    pub admin_listen: Option<SocketAddr>,
    /// What to log: `info`, `debug`, or `target=level,…`.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
}

impl Default for MountConfig {
    fn default() -> Self {
        Self {
            tracker: String::new(),
            cache_dir: None,
            cache_size: ByteCount(10 << 30),
            spool_dir: None,
            segment_size: ByteCount(swarm_proto::DEFAULT_SEGMENT_BYTES.into()),
            free_space_ratio: 0.05,
            max_readahead: ByteCount(64 << 20),
            memory: None,
            read_timeout: Span(Duration::from_secs(30)),
            writeback: false,
            passthrough_writes: false,
            write_timeout: Span(Duration::from_secs(60)),
            metadata_timeout: Span(Duration::from_secs(10)),
            metadata_ttl: Span(Duration::from_secs(3_600)),
            allow_other: false,
            xattr: false,
            read_only: false,
            nonempty: false,
            share: true,
            upload_limit: None,
            download_limit: None,
            local_reads: true,
            listen: SocketAddr::from(([0, 0, 0, 0], 0)),
            advertise: None,
            zone: String::new(),
            host: String::new(),
            offline_ok: false,
            admin_listen: None,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

impl MountConfig {
    /// Check what the types cannot say.
    ///
    /// Errors: the key, and what it must be.
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..1.0).contains(&self.free_space_ratio) {
            return Err(format!("free_space_ratio is {}, must be 0 up to but not including 1", self.free_space_ratio));
        }
        let spans = [
            ("read_timeout", self.read_timeout),
            ("write_timeout", self.write_timeout),
            ("metadata_timeout", self.metadata_timeout),
        ];
        for (key, span) in spans {
            if span.0 < Duration::from_millis(100) || span.0 > Duration::from_secs(3_600) {
                return Err(format!("{key} is {span}, must be 100ms to 1h"));
            }
        }
        if !(u64::from(CHUNK_BYTES)..=u64::from(MAX_SEGMENT_BYTES)).contains(&self.segment_size.0) {
            return Err(format!("segment_size is {}, must be 16KiB to 64MiB", self.segment_size));
        }
        if self.memory.is_some_and(|memory| memory.0 < 4 << 20) {
            return Err("memory must be at least 4MiB".to_owned());
        }
        Ok(())
    }

    /// The same, with folders that can be found from everywhere: relative ones are below the current folder.
    ///
    /// Errors: the key, and what is wrong with it.
    pub fn absolute(self) -> Result<Self, String> {
        let absolute = |key: &str, folder: Option<PathBuf>| {
            folder.map(|folder| std::path::absolute(folder).map_err(|error| format!("{key}: {error}"))).transpose()
        };
        let cache_dir = absolute("cache_dir", self.cache_dir)?;
        let spool_dir = absolute("spool_dir", self.spool_dir)?;
        Ok(Self { cache_dir, spool_dir, ..self })
    }

    /// The cache's folder for this tracker and mount point.
    ///
    /// Shape: `variable` reads the environment.
    pub fn cache_folder(
        &self,
        tracker: &TrackerAddress,
        mountpoint: &Path,
        variable: impl Fn(&str) -> Option<PathBuf>,
    ) -> PathBuf {
        if let Some(folder) = &self.cache_dir {
            return folder.clone();
        }
        let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").filter(|home| home != Path::new("/")).map(|home| home.join(".cache")))
            .unwrap_or_else(|| PathBuf::from("/var/cache"));
        // Two processes cannot use one cache, so each mount has its own, and finds it again.
        let mut hasher = blake3::Hasher::new();
        for part in [tracker.to_string().as_bytes(), b"\0", mountpoint.as_os_str().as_bytes()] {
            hasher.update(part);
        }
        let hash = hasher.finalize().to_hex();
        let name = mountpoint.file_name().unwrap_or(OsStr::new("root")).to_string_lossy();
        base.join("swarmfs").join(format!("{name}-{}", &hash[..12]))
    }

    /// What the mount's peer gives to others.
    pub fn sharing(&self) -> Sharing {
        match self.share {
            true => Sharing::Serve {
                listen: self.listen,
                advertise: self.advertise.clone(),
                upload_limit: self.upload_limit.and_then(|limit| NonZeroU64::new(limit.0)),
            },
            false => Sharing::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tracker_and_mount_point_has_a_cache_of_its_own() {
        let config = MountConfig::default();
        let folder = |tracker: &str, at: &str| {
            config.cache_folder(&tracker.parse().unwrap(), Path::new(at), |name| {
                (name == "HOME").then(|| PathBuf::from("/home/a"))
            })
        };
        let one = folder("h:1", "/mnt/data");
        assert!(one.starts_with("/home/a/.cache/swarmfs"), "{}", one.display());
        assert_eq!(one, folder("swarm://h:1", "/mnt/data"));
        assert_ne!(one, folder("h:2", "/mnt/data"));
        assert_ne!(one, folder("h:1", "/mnt/other/data"));
    }

    #[test]
    fn a_setting_out_of_its_range_names_itself() {
        assert_eq!(MountConfig::default().check(), Ok(()));
        let wrong = MountConfig { free_space_ratio: 1.5, ..MountConfig::default() };
        assert!(wrong.check().unwrap_err().contains("free_space_ratio"));
        let wrong = MountConfig { read_timeout: Span(Duration::ZERO), ..MountConfig::default() };
        assert!(wrong.check().unwrap_err().contains("read_timeout"));
    }

    #[test]
    fn relative_folders_are_below_the_current_one() {
        let here = std::env::current_dir().unwrap();
        let config =
            MountConfig { cache_dir: Some("a/b".into()), spool_dir: Some("./c".into()), ..MountConfig::default() };
        let config = config.absolute().unwrap();
        assert_eq!((config.cache_dir, config.spool_dir), (Some(here.join("a/b")), Some(here.join("c"))));
        let others = MountConfig { spool_dir: Some("/s".into()), ..MountConfig::default() };
        assert_eq!(others.clone().absolute(), Ok(others));
        let wrong = MountConfig { spool_dir: Some(PathBuf::new()), ..MountConfig::default() };
        assert!(wrong.absolute().unwrap_err().contains("spool_dir"));
    }

    #[test]
    fn the_defaults_survive_a_file() {
        let text = swarm_proto::settings::to_toml(&MountConfig::default());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let read = swarm_proto::settings::load::<MountConfig>(Some(file.path()), [], &()).unwrap();
        assert_eq!(read, MountConfig::default());
    }
}
