//! Identities. Newtypes, so that no two can be swapped; all print as lower-case hex or a plain number.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes that are not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The wrong number of bytes came from the wire or the disk.
    #[error("{what} is {want} bytes, not {got}")]
    Length {
        /// Which id.
        what: &'static str,
        /// Its length.
        want: usize,
        /// What came.
        got: usize,
    },
    /// A person's text is not hex of the right length.
    #[error("{what} is {want} hex digits: {text:?}")]
    Text {
        /// Which id.
        what: &'static str,
        /// Hex digits.
        want: usize,
        /// What was given, cut at 80 characters.
        text: String,
    },
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Bytes of this id.
            pub const LENGTH: usize = $len;

            /// From exactly its bytes.
            pub const fn new(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Ids that stand one after the other in `packed`, as the messages carry them.
            ///
            /// Errors: [`IdError::Length`] if `packed` is not a whole number of ids.
            pub fn unpack(packed: &[u8]) -> Result<impl ExactSizeIterator<Item = Self> + '_, IdError> {
                if packed.len() % $len != 0 {
                    return Err(IdError::Length { what: $what, want: $len, got: packed.len() % $len });
                }
                Ok(packed.chunks_exact($len).map(|bytes| {
                    Self(bytes.try_into().expect("chunks_exact yields exactly this length"))
                }))
            }

            /// The reverse of [`Self::unpack`].
            pub fn pack<'a>(ids: impl IntoIterator<Item = &'a Self>) -> bytes::Bytes {
                let mut packed = bytes::BytesMut::new();
                for id in ids {
                    packed.extend_from_slice(&id.0);
                }
                packed.freeze()
            }

            /// The id as a message carries it.
            pub fn to_wire(&self) -> bytes::Bytes {
                bytes::Bytes::copy_from_slice(&self.0)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = IdError;
            fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
                bytes.try_into().map(Self).map_err(|_| IdError::Length { what: $what, want: $len, got: bytes.len() })
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_hex(text).map(Self).ok_or_else(|| IdError::Text {
                    what: $what,
                    want: 2 * $len,
                    text: text.chars().take(80).collect(),
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                f.write_str("…")
            }
        }
    };
}

macro_rules! random_id {
    ($name:ident) => {
        impl $name {
            /// A new one.
            pub fn random() -> Self {
                Self(rand::random())
            }
        }
    };
}

byte_id!(
    /// Plain BLAKE3 of a segment's bytes: what `b3sum` prints.
    SegmentId, 32, "a segment id"
);
byte_id!(
    /// BLAKE3 of a manifest's fixed byte layout.
    ManifestDigest, 32, "a manifest digest"
);
byte_id!(
    /// A peer, over all its restarts.
    PeerId, 16, "a peer id"
);
byte_id!(
    /// One process of a peer.
    ProcessId, 16, "a process id"
);
byte_id!(
    /// One tracker process; a peer that sees a new one announces in full again.
    BootId, 16, "a boot id"
);
byte_id!(
    /// One swarm, over all its life.
    SwarmId, 16, "a swarm id"
);
byte_id!(
    /// One mutation, over all its retries.
    RequestId, 16, "a request id"
);
random_id!(PeerId);
random_id!(ProcessId);
random_id!(BootId);
random_id!(SwarmId);

impl RequestId {
    /// A new one: the time in milliseconds, then ten random bytes. A store keeps the newest side by side.
    pub fn random() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let [_, _, time @ ..] = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).to_be_bytes();
        let mut id: [u8; 16] = rand::random();
        id[..time.len()].copy_from_slice(&time);
        Self(id)
    }
}

/// An inode of the catalog; never used again once gone. 1 is the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeNumber(pub u64);

impl InodeNumber {
    /// The root folder.
    pub const ROOT: Self = Self(1);
}

/// A state of the catalog; a larger one is newer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for InodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_and_back(bytes: [u8; 32]) {
            let id = SegmentId::new(bytes);
            prop_assert_eq!(id.to_string().parse::<SegmentId>(), Ok(id));
        }

        #[test]
        fn packed_and_back(ids: Vec<[u8; 16]>) {
            let ids: Vec<PeerId> = ids.into_iter().map(PeerId::new).collect();
            let packed = PeerId::pack(&ids);
            prop_assert_eq!(PeerId::unpack(&packed).unwrap().collect::<Vec<_>>(), ids);
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<SegmentId>();
        }
    }

    #[test]
    fn a_ragged_pack_is_refused() {
        assert!(SegmentId::unpack(&[0; 33]).is_err());
    }
}
