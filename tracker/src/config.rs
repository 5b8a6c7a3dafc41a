//! How a tracker is configured: flags > `SWARM_*` environment > TOML file > defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};
use swarm_proto::admin::LogFormat;
use swarm_proto::settings::{self, SettingsError, Span};

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackerConfig {
    /// Where to serve; port 0 takes any free one.
    pub listen: SocketAddr,
    /// The folder of the catalog. `None`: the catalog is kept in memory only, for tests.
    pub data: Option<PathBuf>,
    /// Where to serve `/metrics`, `/livez` and `/readyz`; `off`: nowhere.
    pub admin_listen: AdminListen,
    /// Replicas that a healthy segment has.
    pub replicas: u32,
    /// Replicas that a publisher waits for.
    pub min_replicas: u32,
    /// How long a peer's broken stream is forgiven.
    pub stale_grace: Span,
    /// After how long a peer that is gone is given up.
    pub dead_after: Span,
    /// Log filter: `info`, `debug`, or `target=level,…`.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
}

impl Default for TrackerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 7070)),
            data: None,
            admin_listen: AdminListen::On(SocketAddr::from(([127, 0, 0, 1], 7071))),
            replicas: 3,
            min_replicas: 2,
            stale_grace: Span(Duration::from_secs(10)),
            dead_after: Span(Duration::from_secs(600)),
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

/// Where the operator's HTTP endpoint listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminListen {
    /// Nowhere.
    Off,
    /// There.
    On(SocketAddr),
}

impl std::str::FromStr for AdminListen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            _ => text.parse().map(Self::On).map_err(|_| format!("{text:?} is neither ADDRESS:PORT nor \"off\"")),
        }
    }
}

impl std::fmt::Display for AdminListen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On(address) => address.fmt(f),
        }
    }
}

impl Serialize for AdminListen {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AdminListen {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The flags of `swarm-tracker`.
#[derive(Debug, Default, Parser, Serialize)]
#[command(name = "swarm-tracker", version, about = "The tracker of Swarmfs: names, and which peers hold each segment")]
pub struct Flags {
    /// Where to serve peers [default: 0.0.0.0:7070]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// The folder of the catalog
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where to serve /metrics, /livez and /readyz, or "off" [default: 127.0.0.1:7071]
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<String>,
    /// Replicas that a healthy segment has [default: 3]
    #[arg(long, value_name = "N")]
    pub replicas: Option<u32>,
    /// Replicas that a publisher waits for [default: 2]
    #[arg(long, value_name = "N")]
    pub min_replicas: Option<u32>,
    /// How long a peer's broken stream is forgiven [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub stale_grace: Option<String>,
    /// After how long a peer that is gone is given up [default: 10m]
    #[arg(long, value_name = "TIME")]
    pub dead_after: Option<String>,
    /// A TOML file with any of these keys [environment: SWARM_CONFIG]
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Log filter: info, debug, or target=level,… [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Print the configuration as it would be used, and exit
    #[arg(long)]
    #[serde(skip)]
    pub print_config: bool,
}

impl TrackerConfig {
    /// From all layers, and checked.
    ///
    /// Errors: name the key and where it stands.
    pub fn load(flags: &Flags, env: impl IntoIterator<Item = (String, String)>) -> Result<Self, SettingsError> {
        let env: Vec<_> = env.into_iter().collect();
        let named = env.iter().find(|(name, _)| name == "SWARM_CONFIG").map(|(_, file)| PathBuf::from(file));
        let file = flags.config.clone().or(named);
        let config: Self = settings::load(file.as_deref(), env, flags)?;
        config.validate().map_err(|(key, reason)| SettingsError::Value {
            place: "configuration".to_owned(),
            key: key.to_owned(),
            reason,
        })?;
        Ok(config)
    }

    /// What no single key can get wrong. Errors: the key, and why.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        if !(1..=16).contains(&self.replicas) {
            return Err(("replicas", format!("{} is not 1 to 16", self.replicas)));
        }
        if !(1..=self.replicas).contains(&self.min_replicas) {
            return Err((
                "min_replicas",
                format!("{} is not 1 to `replicas`, which is {}", self.min_replicas, self.replicas),
            ));
        }
        if self.dead_after < self.stale_grace {
            return Err((
                "dead_after",
                format!("{} is shorter than `stale_grace`, which is {}", self.dead_after, self.stale_grace),
            ));
        }
        let day = Duration::from_secs(86_400);
        if self.dead_after.0 > 365 * day {
            return Err(("dead_after", format!("{} is longer than a year", self.dead_after)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(flags: &Flags) -> Result<TrackerConfig, String> {
        TrackerConfig::load(flags, []).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_reach_their_keys() {
        let flags = Flags {
            listen: Some("[::1]:9".into()),
            data: Some("/d".into()),
            admin_listen: Some("off".into()),
            replicas: Some(2),
            min_replicas: Some(1),
            stale_grace: Some("3s".into()),
            dead_after: Some("1min".into()),
            log: Some("debug".into()),
            log_format: Some("json".into()),
            ..Flags::default()
        };
        let want = TrackerConfig {
            listen: "[::1]:9".parse().unwrap(),
            data: Some("/d".into()),
            admin_listen: AdminListen::Off,
            replicas: 2,
            min_replicas: 1,
            stale_grace: Span(Duration::from_secs(3)),
            dead_after: Span(Duration::from_secs(60)),
            log: "debug".into(),
            log_format: LogFormat::Json,
        };
        assert_eq!(load(&flags), Ok(want));
    }

    #[test]
    fn a_wrong_setting_names_itself() {
        let wrong = [
            (Flags { listen: Some("here".into()), ..Flags::default() }, "`listen`"),
            (Flags { admin_listen: Some("here".into()), ..Flags::default() }, "`admin_listen`"),
            (Flags { replicas: Some(0), ..Flags::default() }, "`replicas`"),
            (Flags { min_replicas: Some(4), ..Flags::default() }, "`min_replicas`"),
            (Flags { dead_after: Some("1s".into()), ..Flags::default() }, "`dead_after`"),
            (Flags { stale_grace: Some("soon".into()), ..Flags::default() }, "`stale_grace`"),
            (Flags { log_format: Some("xml".into()), ..Flags::default() }, "`log_format`"),
        ];
        for (flags, key) in wrong {
            let error = load(&flags).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let config = TrackerConfig { data: Some("/d".into()), replicas: 5, ..TrackerConfig::default() };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), settings::to_toml(&config)).unwrap();
        assert_eq!(load(&Flags { config: Some(file.path().into()), ..Flags::default() }), Ok(config));
    }
}
