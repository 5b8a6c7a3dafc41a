//! One way for all programs to be configured: flags > `SWARM_*` environment > TOML file > defaults.
//!
//! A program describes its settings as one flat struct with defaults ([`Settings`]) and its flags as a
//! struct of options; [`load`] layers them. Nothing else reads the environment. Unknown keys are errors
//! in files only: other programs put `SWARM_…` variables into the environment (Kubernetes does).

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use config::{Config, Value, ValueKind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Prefix of the environment variables.
pub const ENV_PREFIX: &str = "SWARM_";

/// What can be configured: a flat struct whose fields are the keys, all with defaults.
pub trait Settings: Serialize + DeserializeOwned + Default {}
impl<T: Serialize + DeserializeOwned + Default> Settings for T {}

/// A setting that is wrong: which, where it stands, and why.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("config file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("config file {}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// With line and column.
        reason: String,
    },
    /// A key that the program does not have.
    #[error("{place}: unknown key `{key}`; known keys: {known}")]
    UnknownKey {
        /// File.
        place: String,
        /// As written.
        key: String,
        /// What would do.
        known: String,
    },
    /// A value that its key does not allow.
    #[error("{place}: `{key}`: {reason}")]
    Value {
        /// File, environment variable or flag.
        place: String,
        /// The key.
        key: String,
        /// Why.
        reason: String,
    },
}

/// Build the settings of a program from all four layers.
///
/// Shape:  `flags` serialises to a map of the same keys; absent flags are null or left out. `env` are
///         the process's variables (tests give their own).
/// Errors: [`SettingsError`] names the key and where it stands.
pub fn load<S: Settings>(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
    flags: &impl Serialize,
) -> Result<S, SettingsError> {
    let defaults = defaults::<S>();
    let mut layers: Vec<(String, String, Value)> = Vec::new();
    if let Some(path) = file {
        layers.extend(read_file(path, &defaults)?);
    }
    for (name, text) in env {
        let Some(key) = name.strip_prefix(ENV_PREFIX).map(str::to_lowercase) else { continue };
        if defaults.contains_key(&key) {
            layers.push((format!("environment variable {name}"), key, text_value(text)));
        }
    }
    for (key, value) in table(flags) {
        layers.push((format!("--{}", key.replace('_', "-")), key, value));
    }
    for (place, key, value) in &layers {
        build::<S>(&defaults, [(key, value)]).map_err(|reason| SettingsError::Value {
            place: place.clone(),
            key: key.clone(),
            reason: with_value(&value.to_string(), &reason),
        })?;
    }
    build(&defaults, layers.iter().map(|(_, key, value)| (key, value))).map_err(|reason| SettingsError::Value {
        place: "settings".to_owned(),
        key: "(all)".to_owned(),
        reason,
    })
}

/// Why a value is wrong, with the value.
fn with_value(value: &str, reason: &str) -> String {
    // What Rust's own parser says of an address.
    if reason.starts_with("invalid socket address") {
        return format!("{value:?} is not an address with a port; write it like 127.0.0.1:7070 or [::1]:7070");
    }
    match reason.contains(value) {
        true => reason.to_owned(),
        false => format!("{value:?}: {reason}"),
    }
}

/// The settings as a TOML file that [`load`] would read back, for `--print-config`.
pub fn to_toml(settings: &impl Serialize) -> String {
    toml::to_string(settings).unwrap_or_else(|error| format!("# cannot be shown: {error}\n"))
}

fn read_file(path: &Path, defaults: &BTreeMap<String, Value>) -> Result<Vec<(String, String, Value)>, SettingsError> {
    let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    let entries: toml::Table = toml::from_str(&text)
        .map_err(|error| SettingsError::Syntax { path: path.to_owned(), reason: error.to_string() })?;
    let mut layer = Vec::new();
    for (key, value) in table(&entries) {
        let line = text.lines().position(|line| line.trim_start().trim_start_matches('"').starts_with(&key));
        let place = match line {
            Some(index) => format!("{}, line {}", path.display(), index + 1),
            None => path.display().to_string(),
        };
        if !defaults.contains_key(&key) {
            let known = defaults.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(SettingsError::UnknownKey { place, key, known });
        }
        layer.push((place, key, value));
    }
    Ok(layer)
}

fn build<'a, S: Settings>(
    defaults: &'a BTreeMap<String, Value>,
    layers: impl IntoIterator<Item = (&'a String, &'a Value)>,
) -> Result<S, String> {
    let mut builder = Config::builder();
    for (key, value) in defaults.iter().chain(layers) {
        builder = builder.set_override(key, value.clone()).map_err(|error| error.to_string())?;
    }
    let built = builder.build().map_err(|error| error.to_string())?;
    built.try_deserialize().map_err(|error| match error {
        config::ConfigError::Type { unexpected, expected, .. } => format!("expected {expected}, not {unexpected}"),
        config::ConfigError::At { error, .. } => error.to_string(),
        other => other.to_string(),
    })
}

fn defaults<S: Settings>() -> BTreeMap<String, Value> {
    // An option that is absent by default serialises to null and must stay a known key.
    let json = serde_json::to_value(S::default()).unwrap_or_default();
    let keys = json.as_object().cloned().unwrap_or_default();
    keys.into_iter().map(|(key, value)| (key, json_value(value))).collect()
}

fn table(source: &impl Serialize) -> Vec<(String, Value)> {
    let json = serde_json::to_value(source).unwrap_or_default();
    let entries = json.as_object().cloned().unwrap_or_default();
    entries.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key, json_value(value))).collect()
}

fn json_value(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => ValueKind::Nil,
        Json::Bool(value) => ValueKind::Boolean(value),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => ValueKind::I64(whole),
            (None, float) => ValueKind::Float(float.unwrap_or_default()),
        },
        Json::String(text) => ValueKind::String(text),
        Json::Array(items) => ValueKind::Array(items.into_iter().map(json_value).collect()),
        Json::Object(entries) => {
            ValueKind::Table(entries.into_iter().map(|(key, value)| (key, json_value(value))).collect())
        }
    };
    Value::new(None, kind)
}

/// Environment variables are text; lists are separated by commas.
fn text_value(text: String) -> Value {
    Value::new(None, ValueKind::String(text))
}

/// A size as people write it: `100GiB`, `1.5 GB`, `4096`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ByteCount(pub u64);

const UNITS: [(&str, u64); 13] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
    ("B", 1),
];

impl FromStr for ByteCount {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size; write it like 100GiB, 500MB or 4096");
        let trimmed = text.trim();
        let lower = trimmed.to_lowercase();
        let unit = UNITS.iter().find(|(unit, _)| lower.ends_with(&unit.to_lowercase()));
        let (digits, factor) = match unit {
            Some((unit, factor)) => (trimmed[..trimmed.len() - unit.len()].trim_end(), *factor),
            None => (trimmed, 1),
        };
        if let Ok(whole) = digits.parse::<u64>() {
            return whole.checked_mul(factor).map(Self).ok_or_else(wrong);
        }
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let value = digits.parse::<f64>().ok().filter(|_| plain).ok_or_else(wrong)? * factor as f64;
        #[expect(clippy::cast_possible_truncation, reason = "checked to be below u64::MAX, and never negative")]
        match value < u64::MAX as f64 {
            true => Ok(Self(value as u64)),
            false => Err(wrong()),
        }
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, factor) in &UNITS[..4] {
            if self.0 >= *factor {
                return match self.0 % factor {
                    0 => write!(f, "{}{unit}", self.0 / factor),
                    _ => write!(f, "{:.1}{unit}", self.0 as f64 / *factor as f64),
                };
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl fmt::Debug for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ByteCount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let exact = UNITS[..4].iter().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor));
        match exact {
            Some((unit, factor)) => serializer.collect_str(&format_args!("{}{unit}", self.0 / factor)),
            None => serializer.collect_str(&format_args!("{}B", self.0)),
        }
    }
}

impl<'de> Deserialize<'de> for ByteCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_number(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A duration as people write it: `30s`, `10min`, `250ms`; a bare number is seconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(seconds) = text.trim().parse::<u64>() {
            return Ok(Self(Duration::from_secs(seconds)));
        }
        humantime::parse_duration(text.trim())
            .map(Self)
            .map_err(|error| format!("{text:?} is not a duration ({error}); write it like 30s, 10min or 250ms"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_number(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Either;
    impl serde::de::Visitor<'_> for Either {
        type Value = String;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or a whole number that is not negative")
        }
        fn visit_str<E>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
        fn visit_u64<E>(self, number: u64) -> Result<String, E> {
            Ok(number.to_string())
        }
        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<String, E> {
            u64::try_from(number)
                .map(|number| number.to_string())
                .map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(number), &self))
        }
    }
    deserializer.deserialize_any(Either)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        capacity: ByteCount,
        wait: Span,
        zone: String,
        share: bool,
        ratio: f64,
        limit: Option<ByteCount>,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self {
                capacity: ByteCount(1 << 30),
                wait: Span(Duration::from_secs(30)),
                zone: "here".into(),
                share: true,
                ratio: 0.1,
                limit: None,
            }
        }
    }

    #[derive(Serialize, Default)]
    struct Flags {
        zone: Option<String>,
        limit: Option<String>,
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn env(name: &str, text: &str) -> Vec<(String, String)> {
        vec![(name.to_owned(), text.to_owned())]
    }

    #[test]
    fn a_later_layer_wins() {
        let file = file("zone = \"file\"\ncapacity = \"2GiB\"\nwait = 5\n");
        let flags = Flags { zone: Some("flag".into()), limit: Some("1MB".into()) };
        let got: Sample = load(Some(file.path()), env("SWARM_CAPACITY", "3GiB"), &flags).unwrap();
        assert_eq!((got.zone.as_str(), got.capacity.0, got.wait.0.as_secs()), ("flag", 3 << 30, 5));
        assert_eq!(got.limit, Some(ByteCount(1_000_000)));
    }

    #[test]
    fn booleans_and_numbers_come_from_the_environment_too() {
        let got: Sample = load(None, env("SWARM_SHARE", "false"), &Flags::default()).unwrap();
        assert!(!got.share);
        let got: Sample = load(None, env("SWARM_RATIO", "0.25"), &Flags::default()).unwrap();
        assert!((got.ratio - 0.25).abs() < 1e-9);
    }

    #[test]
    fn a_wrong_key_names_itself_and_its_line() {
        let file = file("zone = \"a\"\ncapcity = 1\n");
        let error = load::<Sample>(Some(file.path()), [], &Flags::default()).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("`capcity`") && error.contains("capacity"), "{error}");
    }

    #[test]
    fn a_wrong_value_names_its_place() {
        let error = load::<Sample>(None, env("SWARM_WAIT", "soon"), &Flags::default()).unwrap_err().to_string();
        assert!(error.contains("SWARM_WAIT") && error.contains("`wait`") && error.contains("soon"), "{error}");
        let flags = Flags { limit: Some("-1".into()), ..Flags::default() };
        let error = load::<Sample>(None, [], &flags).unwrap_err().to_string();
        assert!(error.contains("--limit") && error.contains("-1"), "{error}");
        let file = file("capacity = -5\n");
        let error = load::<Sample>(Some(file.path()), [], &Flags::default()).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("`capacity`"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_said_with_what_is_wrong_about_it() {
        assert_eq!(with_value("7", "expected 1, not 7"), "expected 1, not 7");
        assert_eq!(with_value("7", "too large"), "\"7\": too large");
        let said = with_value("foo", "invalid socket address syntax");
        assert!(said.contains("\"foo\"") && said.contains("127.0.0.1:7070"), "{said}");
    }

    #[test]
    fn foreign_variables_are_left_alone() {
        let variables = env("SWARM_TRACKER_PORT", "tcp://10.0.0.1:7000");
        assert_eq!(load::<Sample>(None, variables, &Flags::default()).unwrap(), Sample::default());
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let sample = Sample { capacity: ByteCount(12_345), ..Sample::default() };
        let file = file(&to_toml(&sample));
        assert_eq!(load::<Sample>(Some(file.path()), [], &Flags::default()).unwrap(), sample);
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("1k", 1024), ("1.5 GiB", 3 << 29), ("2 MB", 2_000_000), ("7b", 7)]
        {
            assert_eq!(text.parse(), Ok(ByteCount(bytes)), "{text}");
        }
        for text in ["", "GiB", "1e5", "-1", "nan", "inf", "99999999999TiB", "1 XB", "1é"] {
            assert!(text.parse::<ByteCount>().is_err(), "{text}");
        }
    }
}
