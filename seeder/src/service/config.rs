//! What a seeder can be told: by flags, `SWARM_*` variables, a file, or not at all.
//!
//! Invariant: [`Checked`] exists only for settings that make sense together; nothing is bound, opened or
//! written before.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;

use clap::Parser;
use serde::{Deserialize, Serialize};
use swarm_proto::MAX_SEGMENT_BYTES;
use swarm_proto::admin::LogFormat;
use swarm_proto::settings::{self, ByteCount, SettingsError};

use crate::tracker_client::TrackerAddress;

/// Bytes of a zone's or a host's name.
const MOST_NAME: usize = 255;

/// Keeps chunks of a swarm on this machine's disk, and serves them.
#[derive(Debug, Parser, Serialize)]
#[command(name = "swarm-seeder", version, max_term_width = 100)]
pub struct Flags {
    /// The tracker: swarm://HOST:PORT[,HOST:PORT…] [env: SWARM_TRACKER]
    #[arg(long, value_name = "URL")]
    pub tracker: Option<String>,
    /// Where to serve chunks; port 0 takes any free one [default: 0.0.0.0:7080]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// host:port at which others reach this seeder, where that is not what it listens on
    #[arg(long, value_name = "ADDR")]
    pub advertise: Option<String>,
    /// Folder of the store [default: ./swarm-seeder]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// How much it may keep, like 100GiB; 0: nine tenths of what is free [default: 0]
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<String>,
    /// Failure domain, like a room or a site: replicas are spread over zones
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// The machine: seeders of one host count as one failure [default: this machine's name]
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// Segments up to this size lie in the database itself [default: 64KiB]
    #[arg(long, value_name = "SIZE")]
    pub inline_up_to: Option<String>,
    /// Bytes a second that others may fetch from here, like 10MiB
    #[arg(long, value_name = "SIZE")]
    pub upload_limit: Option<String>,
    /// Bytes a second that repair may fetch
    #[arg(long, value_name = "SIZE")]
    pub download_limit: Option<String>,
    /// Where /metrics, /livez and /readyz are shown; "off": nowhere [default: 127.0.0.1:7081]
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<String>,
    /// What to log: error, warn, info, debug, or target=level,… [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// How log lines look: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// TOML file with any of these settings, written with underscores [env: SWARM_CONFIG]
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Show the settings that would be used, and end
    #[arg(long)]
    #[serde(skip)]
    pub print_config: bool,
}

/// The settings of a seeder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeederConfig {
    /// `swarm://host:port[,host:port…]`.
    pub tracker: String,
    /// Where it serves.
    pub listen: SocketAddr,
    /// host:port for others; none: the listening address.
    pub advertise: Option<String>,
    /// Folder of the store.
    pub data: PathBuf,
    /// Bytes it may keep; 0: nine tenths of what is free.
    pub capacity: ByteCount,
    /// Failure domain; empty: the default one.
    pub zone: String,
    /// The machine.
    pub host: String,
    /// Longest segment that lies in the database.
    pub inline_up_to: ByteCount,
    /// Bytes a second served; none: no limit.
    pub upload_limit: Option<ByteCount>,
    /// Bytes a second fetched; none: no limit.
    pub download_limit: Option<ByteCount>,
    /// Address of the operator's endpoint, or "off".
    pub admin_listen: String,
    /// Log filter.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
}

impl Default for SeederConfig {
    fn default() -> Self {
        Self {
            tracker: String::new(),
            listen: SocketAddr::from(([0, 0, 0, 0], 7080)),
            advertise: None,
            data: PathBuf::from("swarm-seeder"),
            capacity: ByteCount(0),
            zone: String::new(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            inline_up_to: ByteCount(64 * 1024),
            upload_limit: None,
            download_limit: None,
            admin_listen: "127.0.0.1:7081".to_owned(),
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

/// Settings that cannot work, by key.
#[derive(Debug, thiserror::Error)]
#[error("`{key}`: {reason}")]
pub struct ConfigError {
    /// The setting.
    pub key: &'static str,
    /// Why, and what would do.
    pub reason: String,
}

/// Settings that were checked, in the types that the rooms want.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    pub(super) tracker: TrackerAddress,
    pub(super) admin_listen: Option<SocketAddr>,
    pub(super) inline_up_to: u32,
    pub(super) upload_limit: Option<NonZeroU64>,
}

impl SeederConfig {
    /// The settings of this process: flags, then variables, then the file, then defaults.
    ///
    /// Errors: [`SettingsError`] names the key and where it stands.
    pub fn load(flags: &Flags, env: impl IntoIterator<Item = (String, String)>) -> Result<Self, SettingsError> {
        let env: Vec<_> = env.into_iter().collect();
        let named = env.iter().find(|(name, _)| name == "SWARM_CONFIG").map(|(_, file)| PathBuf::from(file));
        settings::load(flags.config.clone().or(named).as_deref(), env, flags)
    }

    /// Whether they can work together. Errors: [`ConfigError`] names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check().map(drop)
    }

    pub(super) fn check(&self) -> Result<Checked, ConfigError> {
        let wrong = |key, reason: String| ConfigError { key, reason };
        if self.tracker.is_empty() {
            let reason = "it is not set: give --tracker swarm://HOST:PORT, or set SWARM_TRACKER";
            return Err(wrong("tracker", reason.to_owned()));
        }
        let tracker: TrackerAddress = self.tracker.parse().map_err(|error| wrong("tracker", format!("{error}")))?;
        if !tracker.sub().is_empty() {
            let reason = format!("a seeder serves the whole swarm: leave out /{}", tracker.sub());
            return Err(wrong("tracker", reason));
        }
        if let Some(address) = &self.advertise {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
            let port = address.rsplit_once(':').and_then(|(host, port)| {
                let host_is_plain = !host.is_empty() && host.bytes().all(plain);
                port.parse::<u16>().ok().filter(|port| *port > 0 && host_is_plain)
            });
            if port.is_none() || address.len() > MOST_NAME {
                return Err(wrong("advertise", format!("{address:?} is not HOST:PORT")));
            }
        }
        for (key, name) in [("zone", &self.zone), ("host", &self.host)] {
            if name.len() > MOST_NAME {
                return Err(wrong(key, format!("{} bytes long; at most {MOST_NAME}", name.len())));
            }
        }
        let admin_listen = match self.admin_listen.as_str() {
            "off" => None,
            text => {
                let reason = || format!("{text:?} is neither IP:PORT nor \"off\"");
                Some(text.parse().map_err(|_| wrong("admin_listen", reason()))?)
            }
        };
        let inline_up_to = u32::try_from(self.inline_up_to.0).ok().filter(|bytes| *bytes <= MAX_SEGMENT_BYTES);
        let inline_up_to = inline_up_to.ok_or_else(|| {
            let reason = format!("{} is more than the longest segment, {}", self.inline_up_to, MAX_SEGMENT_BYTES);
            wrong("inline_up_to", reason)
        })?;
        let limit = |key, limit: Option<ByteCount>| match limit.map(|bytes| NonZeroU64::new(bytes.0)) {
            Some(None) => Err(wrong(key, "0 would let nothing through; leave it out for no limit".to_owned())),
            Some(limit) => Ok(limit),
            None => Ok(None),
        };
        limit("download_limit", self.download_limit)?;
        let upload_limit = limit("upload_limit", self.upload_limit)?;
        Ok(Checked { tracker, admin_listen, inline_up_to, upload_limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> SeederConfig {
        SeederConfig { tracker: "swarm://127.0.0.1:1".to_owned(), ..SeederConfig::default() }
    }

    fn load(words: &[&str], env: &[(&str, &str)]) -> Result<SeederConfig, SettingsError> {
        let flags = Flags::parse_from(["swarm-seeder"].iter().chain(words));
        SeederConfig::load(&flags, env.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())))
    }

    #[test]
    fn flags_go_before_variables() {
        let words = ["--tracker", "swarm://a:1", "--capacity", "100GiB", "--listen", "127.0.0.1:0", "--zone", "z"];
        let env = [("SWARM_TRACKER", "swarm://b:2"), ("SWARM_UPLOAD_LIMIT", "1MB"), ("SWARM_LOG_FORMAT", "json")];
        let config = load(&words, &env).unwrap();
        assert_eq!((config.tracker.as_str(), config.capacity.0), ("swarm://a:1", 100 << 30));
        assert_eq!((config.upload_limit, config.log_format), (Some(ByteCount(1_000_000)), LogFormat::Json));
        assert!(config.validate().is_ok());
    }

    #[test]
    fn a_wrong_value_names_its_place() {
        let error = load(&["--listen", "here"], &[]).unwrap_err().to_string();
        assert!(error.contains("--listen") && error.contains("`listen`"), "{error}");
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = SeederConfig { upload_limit: Some(ByteCount(12)), ..good() };
        std::fs::write(file.path(), settings::to_toml(&config)).unwrap();
        assert_eq!(load(&["--config", &file.path().to_string_lossy()], &[]).unwrap(), config);
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let long = "z".repeat(256);
        let cases: [(&str, SeederConfig); 9] = [
            ("tracker", SeederConfig::default()),
            ("tracker", SeederConfig { tracker: "https://x".into(), ..good() }),
            ("tracker", SeederConfig { tracker: "swarm://a:1/sub".into(), ..good() }),
            ("advertise", SeederConfig { advertise: Some("nohost".into()), ..good() }),
            ("advertise", SeederConfig { advertise: Some("a b:1".into()), ..good() }),
            ("zone", SeederConfig { zone: long, ..good() }),
            ("admin_listen", SeederConfig { admin_listen: "no".into(), ..good() }),
            ("inline_up_to", SeederConfig { inline_up_to: ByteCount(1 << 40), ..good() }),
            ("upload_limit", SeederConfig { upload_limit: Some(ByteCount(0)), ..good() }),
        ];
        for (key, config) in cases {
            assert_eq!(config.validate().unwrap_err().key, key, "{config:?}");
        }
        assert!(good().validate().is_ok());
        assert!(SeederConfig { admin_listen: "off".into(), ..good() }.validate().is_ok());
    }
}
