//! **PURE.** The address at which others reach a peer.

use std::net::{IpAddr, SocketAddr};

/// An address that nobody could connect to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("address {given:?} is not HOST:PORT: {why}")]
pub struct AddressError {
    given: String,
    why: &'static str,
}

/// The address to hand out for a peer that says `given` and is seen at `seen`.
///
/// Shape:  an unspecified host (0.0.0.0 or ::) becomes the host seen. Empty stays empty: it serves nothing.
/// Errors: not a host (name, IPv4, or IPv6 in brackets) and a port from 1 to 65535.
pub fn advertised(given: &str, seen: Option<IpAddr>) -> Result<String, AddressError> {
    if given.is_empty() {
        return Ok(String::new());
    }
    let wrong = |why| AddressError { given: given.chars().take(80).collect(), why };
    if let Ok(address) = given.parse::<SocketAddr>() {
        if address.port() == 0 {
            return Err(wrong("the port is 0"));
        }
        if !address.ip().is_unspecified() {
            return Ok(given.to_owned());
        }
        let seen = seen.ok_or_else(|| wrong("its host is unspecified and the connection shows none"))?;
        return Ok(SocketAddr::new(seen.to_canonical(), address.port()).to_string());
    }
    let (host, port) = given.rsplit_once(':').ok_or_else(|| wrong("no port"))?;
    if !matches!(port.parse::<u16>(), Ok(1..)) || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong("the port must be 1 to 65535"));
    }
    let plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    if !(1..=253).contains(&host.len()) || !plain {
        return Err(wrong("not a host name"));
    }
    Ok(given.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_unspecified_host_becomes_the_one_seen() {
        let seen = Some("10.1.2.3".parse().unwrap());
        assert_eq!(advertised("0.0.0.0:7", seen).unwrap(), "10.1.2.3:7");
        assert_eq!(advertised("[::]:7", seen).unwrap(), "10.1.2.3:7");
        let six = Some("fe80::1".parse().unwrap());
        assert_eq!(advertised("[::]:7", six).unwrap(), "[fe80::1]:7");
        let mapped = Some("::ffff:10.1.2.3".parse().unwrap());
        assert_eq!(advertised("[::]:7", mapped).unwrap(), "10.1.2.3:7");
        assert!(advertised("0.0.0.0:7", None).is_err());
    }

    #[test]
    fn a_stated_host_stays() {
        for given in ["", "seeder-1.example:7070", "127.0.0.1:1", "[::1]:65535"] {
            assert_eq!(advertised(given, Some("10.1.2.3".parse().unwrap())).unwrap(), given);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for given in
            ["x", ":1", "a:0", "a:65536", "a:+1", "a b:1", "a/b:1", "http://a:1", "a:1\n", "::1:7", "0.0.0.0:0"]
        {
            assert!(advertised(given, Some("10.1.2.3".parse().unwrap())).is_err(), "{given:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(given: String) {
            let _ = advertised(&given, None);
        }
    }
}
