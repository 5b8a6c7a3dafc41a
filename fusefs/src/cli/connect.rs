//! From flags, environment and file to a connected client: the settings that all commands share.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use swarm_proto::settings::{self, ByteCount, Span};
use swarm_proto::{CHUNK_BYTES, DEFAULT_SEGMENT_BYTES, MAX_SEGMENT_BYTES};
use swarm_seeder::tracker_client::{TrackerAddress, TrackerClient, TrackerClientConfig, TrackerError};

use super::exit::{Exit, Failure, Outcome, of_fault};
use super::show::warn;
use crate::up::state::StateFolder;

/// Flags that all commands share.
#[derive(Debug, Clone, Default, Args, Serialize)]
pub struct ToolFlags {
    /// The tracker: swarm://HOST:PORT[,HOST:PORT][/FOLDER] [env: SWARM_TRACKER] [default: what `swarmfs up`
    /// runs on this machine]
    #[arg(short = 't', long, global = true, value_name = "ADDRESS")]
    pub tracker: Option<String>,
    /// How long to wait for a tracker that does not answer [default: 10s]
    #[arg(long, global = true, value_name = "TIME", hide_short_help = true)]
    pub patience: Option<String>,
    /// Zone of this machine: peers there are preferred
    #[arg(long, global = true, value_name = "NAME", hide_short_help = true)]
    pub zone: Option<String>,
    /// What to log on standard error: warn, info, debug, or target=level,… [default: warn]
    #[arg(long, global = true, value_name = "FILTER", hide_short_help = true)]
    pub log: Option<String>,
    /// Say more on standard error
    #[arg(short, long, global = true)]
    #[serde(skip)]
    pub verbose: bool,
    /// Read settings from this TOML file
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Print the settings in force as TOML, and do nothing
    #[arg(long, global = true, hide_short_help = true)]
    #[serde(skip)]
    pub print_config: bool,
}

/// The settings that all commands share: flags > `SWARM_*` environment > file > these defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolSettings {
    /// The tracker; empty: what `swarmfs up` runs on this machine.
    pub tracker: String,
    /// How long to wait for a tracker that does not answer.
    pub patience: Span,
    /// Zone of this machine; empty: the default one.
    pub zone: String,
    /// Log filter.
    pub log: String,
    /// Length at which `put` cuts files.
    pub segment_size: ByteCount,
    /// Bytes that `put` and `get` keep in memory on their way.
    pub in_flight: ByteCount,
    /// Read from the files of seeders that run on this machine, and not over the network.
    pub local_reads: bool,
}

impl Default for ToolSettings {
    fn default() -> Self {
        Self {
            tracker: String::new(),
            patience: Span(Duration::from_secs(10)),
            zone: String::new(),
            log: "warn".to_owned(),
            segment_size: ByteCount(u64::from(DEFAULT_SEGMENT_BYTES)),
            in_flight: ByteCount(64 << 20),
            local_reads: true,
        }
    }
}

/// What every command is given.
#[derive(Debug, Clone)]
pub struct Tool {
    /// The settings in force.
    pub settings: ToolSettings,
    /// Whether to say more.
    pub verbose: bool,
}

/// A tracker, and the folder in it that is `/` to the person.
#[derive(Clone)]
pub struct Connection {
    /// The client.
    pub tracker: TrackerClient,
    /// What stands before every path; no slash at its end; empty for the root.
    root: Vec<u8>,
}

impl Tool {
    /// Layer flags over environment over file over defaults.
    ///
    /// Errors: [`Exit::Config`] names the setting and where it stands.
    pub fn new(flags: &ToolFlags) -> Outcome<Self> {
        Self::from_env(
            flags,
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )
    }

    fn from_env(flags: &ToolFlags, env: impl IntoIterator<Item = (String, String)>) -> Outcome<Self> {
        let settings: ToolSettings = settings::load(flags.config.as_deref(), env, flags)
            .map_err(|error| Failure::new(Exit::Config, error.to_string()))?;
        if !(u64::from(CHUNK_BYTES)..=u64::from(MAX_SEGMENT_BYTES)).contains(&settings.segment_size.0) {
            return Err(Failure::new(
                Exit::Config,
                format!(
                    "segment_size is {}, must be {} to {}",
                    settings.segment_size,
                    ByteCount(CHUNK_BYTES.into()),
                    ByteCount(MAX_SEGMENT_BYTES.into())
                ),
            ));
        }
        Ok(Self { settings, verbose: flags.verbose })
    }

    /// The settings as TOML.
    pub fn settings_text(&self) -> String {
        settings::to_toml(&self.settings)
    }

    /// What to log: `--log`, or one level more with `-v`.
    pub fn log_filter(&self) -> &str {
        match self.settings.log.as_str() {
            "warn" if self.verbose => "info",
            filter => filter,
        }
    }

    /// The tracker's address: `--tracker`, `SWARM_TRACKER`, or that of `swarmfs up` on this machine.
    pub fn address(&self) -> Outcome<TrackerAddress> {
        let given = self.settings.tracker.trim();
        if !given.is_empty() {
            return given.parse().map_err(|error| Failure::new(Exit::Config, format!("tracker: {error}")));
        }
        let state = StateFolder::default_for(|name| std::env::var_os(name).map(PathBuf::from));
        let address =
            state.tracker_address().and_then(|text| text.parse::<TrackerAddress>().ok()).ok_or_else(|| {
                Failure::new(Exit::Config, "which tracker? none is given")
                    .hint("give --tracker swarm://HOST:7070, set SWARM_TRACKER, or start one here: `swarmfs up DIR`")
            })?;
        if self.verbose {
            warn(format!("using {address}, which `swarmfs up` runs from {}", state.path.display()));
        }
        Ok(address)
    }

    /// A client of the tracker; it connects when it is first used.
    pub fn connect(&self) -> Outcome<Connection> {
        self.connect_to(self.address()?)
    }

    /// A client of this tracker.
    pub fn connect_to(&self, address: TrackerAddress) -> Outcome<Connection> {
        let root = match address.sub() {
            "" => Vec::new(),
            sub => format!("/{sub}").into_bytes(),
        };
        let config = TrackerClientConfig {
            address: address.at_root(),
            me: None,
            zone: self.settings.zone.clone(),
            patience: self.settings.patience.0,
        };
        let tracker = TrackerClient::new(config).map_err(|error| Failure::new(Exit::Config, error.to_string()))?;
        Ok(Connection { tracker, root })
    }
}

impl Connection {
    /// The path in the catalog of a path that a person gave.
    pub fn absolute(&self, path: &[u8]) -> Vec<u8> {
        let mut absolute = self.root.clone();
        if !path.starts_with(b"/") {
            absolute.push(b'/');
        }
        absolute.extend_from_slice(path);
        absolute
    }
}

/// What a failed question to the tracker means to a person.
pub fn tracker_failure(doing: impl std::fmt::Display, error: &TrackerError) -> Failure {
    let failure = Failure::new(of_fault(error.fault()), format!("{doing}: {error}"));
    match error {
        TrackerError::Unreachable { .. } => failure
            .hint("check --tracker or SWARM_TRACKER, and that the port is open; `swarmfs up DIR` starts a swarm here"),
        // Of another version, or no tracker at all: the system is in the way, not the data.
        TrackerError::Nonsense { .. } => Failure { exit: Exit::Unreachable, ..failure },
        TrackerError::Stranger { .. } => Failure { exit: Exit::Unreachable, ..failure }
            .hint("check --tracker or SWARM_TRACKER: the port is that of a tracker's --listen"),
        TrackerError::Refused { .. } => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_flag_wins_over_the_environment() {
        let flags = ToolFlags { tracker: Some("flag:1".to_owned()), ..ToolFlags::default() };
        let tool = Tool::from_env(&flags, env(&[("SWARM_TRACKER", "env:2")])).unwrap();
        assert_eq!(tool.address().unwrap().to_string(), "swarm://flag:1");
        let tool = Tool::from_env(&ToolFlags::default(), env(&[("SWARM_TRACKER", "env:2/a/b/")])).unwrap();
        assert_eq!(tool.address().unwrap().to_string(), "swarm://env:2/a/b");
    }

    #[test]
    fn a_wrong_setting_ends_in_78_and_names_itself() {
        let failure = Tool::from_env(&ToolFlags::default(), env(&[("SWARM_PATIENCE", "soon")])).unwrap_err();
        assert!(failure.exit == Exit::Config && failure.message.contains("SWARM_PATIENCE"), "{failure}");
        let failure = Tool::from_env(&ToolFlags::default(), env(&[("SWARM_SEGMENT_SIZE", "65MiB")])).unwrap_err();
        assert!(failure.exit == Exit::Config && failure.message.contains("segment_size"), "{failure}");
        let flags = ToolFlags { tracker: Some("a:b".to_owned()), ..ToolFlags::default() };
        assert_eq!(Tool::from_env(&flags, env(&[])).unwrap().address().unwrap_err().exit, Exit::Config);
    }

    #[tokio::test]
    async fn a_folder_in_the_address_stands_before_every_path() {
        let flags = ToolFlags { tracker: Some("h:1/a/b".to_owned()), ..ToolFlags::default() };
        let connection = Tool::from_env(&flags, env(&[])).unwrap().connect().unwrap();
        assert_eq!(connection.absolute(b"/c"), b"/a/b/c");
        assert_eq!(connection.absolute(b"c"), b"/a/b/c");
        assert_eq!(connection.absolute(b"/"), b"/a/b/");
    }
}
