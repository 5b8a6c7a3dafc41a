//! **PURE.** Extended attributes: names with values that programs attach to files and directories.
//!
//! Only those of users: others mean something to a kernel, which would have to be told of them.
//!
//! Invariants: names begin with `user.`, are unique and sorted by their bytes; all names and values of an inode together
//! are at most [`MAX_EXTENDED_BYTES`].

use std::collections::BTreeMap;

use swarm_proto::Fault;

use super::{MAX_NAME_BYTES, Refusal};

/// Names and values of one inode, together. With it an inode's record stays a small value of its store.
pub const MAX_EXTENDED_BYTES: usize = 8 * 1024;
const PREFIX: &[u8] = b"user.";

/// The name of an extended attribute: 6 to 255 bytes without NUL, beginning with `user.`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExtendedName(Box<[u8]>);

impl ExtendedName {
    /// Check the rules.
    ///
    /// Errors: [`Fault::Invalid`].
    pub fn new(bytes: &[u8]) -> Result<Self, Refusal> {
        let problem = match bytes {
            long if long.len() > MAX_NAME_BYTES => "the name of an attribute has more than 255 bytes",
            other if !other.starts_with(PREFIX) => "the name of an attribute does not begin with user.",
            short if short.len() == PREFIX.len() => "the name of an attribute ends after user.",
            with if with.contains(&0) => "the name of an attribute contains NUL",
            _ => return Ok(Self(bytes.into())),
        };
        Err(Refusal::new(Fault::Invalid, problem))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The attributes of one inode; nearly all inodes have none, which costs 8 bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::box_collection, reason = "a map is three times as large as a box, and hardly any inode has one")]
pub struct Extended(Option<Box<BTreeMap<ExtendedName, Box<[u8]>>>>);

impl Extended {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// All, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&ExtendedName, &[u8])> {
        self.0.iter().flat_map(|map| map.iter()).map(|(name, value)| (name, &value[..]))
    }

    /// Whether there is one of that name.
    pub fn contains(&self, name: &ExtendedName) -> bool {
        self.0.as_ref().is_some_and(|map| map.contains_key(name))
    }

    /// Bytes of all names and values.
    pub fn bytes(&self) -> usize {
        self.iter().map(|(name, value)| name.as_bytes().len() + value.len()).sum()
    }

    /// Set one, whether it was there or not.
    ///
    /// Errors: [`Fault::NoSpace`] if there would be too many bytes; nothing is changed then.
    pub fn set(&mut self, name: &ExtendedName, value: &[u8]) -> Result<(), Refusal> {
        let replaced = self.0.as_ref().and_then(|map| map.get(name)).map(|old| name.as_bytes().len() + old.len());
        let bytes = self.bytes() - replaced.unwrap_or(0) + name.as_bytes().len() + value.len();
        if bytes > MAX_EXTENDED_BYTES {
            let message = format!("attributes of {bytes} bytes, the limit is {MAX_EXTENDED_BYTES}");
            return Err(Refusal::new(Fault::NoSpace, message));
        }
        self.0.get_or_insert_default().insert(name.clone(), value.into());
        Ok(())
    }

    /// Remove one; whether it was there.
    pub fn remove(&mut self, name: &ExtendedName) -> bool {
        let Some(map) = &mut self.0 else { return false };
        let was_there = map.remove(name).is_some();
        if map.is_empty() {
            self.0 = None;
        }
        was_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ExtendedName {
        ExtendedName::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn names_begin_with_user_and_have_6_to_255_bytes_without_nul() {
        let fault = |name: &[u8]| ExtendedName::new(name).err().map(|refusal| refusal.fault);
        let long = |length| [PREFIX, &vec![b'x'; length - PREFIX.len()][..]].concat();
        for good in [&b"user.x"[..], b"user.\xff/ \n", &long(255)] {
            assert_eq!(fault(good), None, "{}", good.escape_ascii());
        }
        for bad in [&b""[..], b"user", b"user.", b"user.a\0", b"security.selinux", b"trusted.x", b"User.x", &long(256)]
        {
            assert_eq!(fault(bad), Some(Fault::Invalid), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn names_and_values_are_bounded_together_and_what_is_replaced_makes_room() {
        let mut extended = Extended::default();
        extended.set(&name("user.a"), &vec![1; MAX_EXTENDED_BYTES - 6]).unwrap();
        assert_eq!(extended.bytes(), MAX_EXTENDED_BYTES);
        let before = extended.clone();
        for (name, value) in [(name("user.b"), &b""[..]), (name("user.a"), &[2; MAX_EXTENDED_BYTES - 5])] {
            assert_eq!(extended.set(&name, value).unwrap_err().fault, Fault::NoSpace);
            assert_eq!(extended, before);
        }
        extended.set(&name("user.a"), &[]).unwrap();
        extended.set(&name("user.A"), b"v").unwrap();
        let all: Vec<_> = extended.iter().map(|(name, value)| (name.as_bytes(), value)).collect();
        assert_eq!(all, [(&b"user.A"[..], &b"v"[..]), (b"user.a", b"")]);
    }

    #[test]
    fn an_inode_that_lost_its_last_attribute_is_like_one_that_never_had_any() {
        let mut extended = Extended::default();
        assert!(!extended.remove(&name("user.a")));
        extended.set(&name("user.a"), b"1").unwrap();
        assert!(extended.contains(&name("user.a")) && !extended.is_empty());
        assert!(extended.remove(&name("user.a")));
        assert_eq!(extended, Extended::default());
        assert_eq!(size_of::<Extended>(), 8);
    }
}
