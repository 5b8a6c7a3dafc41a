//! **PURE.** Where a tracker is, as people write it: `swarm://HOST:PORT[,HOST:PORT…][/SUB]`.

use std::fmt;
use std::str::FromStr;

/// Port of a tracker that is given without one.
pub const DEFAULT_PORT: u16 = 7070;

/// Text that is not the address of a tracker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not the address of a tracker; write it like swarm://host:7070 or swarm://a:7070,b:7070")]
pub struct AddressError {
    /// What was given.
    pub text: String,
}

/// The replicas of a tracker, and a folder in its catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackerAddress {
    endpoints: Vec<String>,
    sub: String,
}

impl TrackerAddress {
    /// `host:port` of each replica; at least one.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// The folder, without slashes at its ends; empty: the root.
    pub fn sub(&self) -> &str {
        &self.sub
    }

    /// The same tracker, at its root.
    pub fn at_root(&self) -> Self {
        Self { endpoints: self.endpoints.clone(), sub: String::new() }
    }
}

impl FromStr for TrackerAddress {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError { text: text.to_owned() };
        let rest = text.trim();
        // gRPC's own tools write `http://`.
        let rest = ["swarm://", "http://"].iter().find_map(|scheme| rest.strip_prefix(scheme)).unwrap_or(rest);
        let (hosts, sub) = rest.split_once('/').unwrap_or((rest, ""));
        let endpoints = hosts.split(',').map(|host| endpoint(host).ok_or_else(wrong)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { endpoints, sub: sub.trim_matches('/').to_owned() })
    }
}

/// `host:port` of a host with or without a port; IPv6 addresses stand in brackets.
fn endpoint(text: &str) -> Option<String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (format!("[{host}]"), after.strip_prefix(':').or(after.is_empty().then_some("")))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (text.to_owned(), Some("")),
        },
    };
    let port = match port? {
        "" if !text.ends_with(':') => DEFAULT_PORT,
        digits => digits.parse().ok().filter(|port| *port != 0)?,
    };
    let plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte));
    (plain && !host.is_empty()).then(|| format!("{host}:{port}"))
}

impl fmt::Display for TrackerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "swarm://{}", self.endpoints.join(","))?;
        match self.sub.is_empty() {
            true => Ok(()),
            false => write!(f, "/{}", self.sub),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read() {
        for (text, shown) in [
            ("swarm://a:1", "swarm://a:1"),
            ("a", "swarm://a:7070"),
            ("swarm://a:1,b/x/y/", "swarm://a:1,b:7070/x/y"),
            ("10.0.0.1:5", "swarm://10.0.0.1:5"),
            ("[::1]:9/s", "swarm://[::1]:9/s"),
            ("[::1]", "swarm://[::1]:7070"),
            ("http://a:1", "swarm://a:1"),
        ] {
            assert_eq!(text.parse::<TrackerAddress>().unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "swarm://", "a:", "a:0", "a:99999", "a:b", "a b:1", "https://a:1", "[::1:2", "a,,b", "[zz]:1"]
        {
            assert!(text.parse::<TrackerAddress>().is_err(), "{text}");
        }
    }
}
