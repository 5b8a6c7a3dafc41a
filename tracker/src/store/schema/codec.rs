//! **PURE.** Records to bytes and back.

use bytes::{Buf, BufMut, Bytes};
use swarm_proto::{InodeNumber, ManifestDigest, PeerId, RequestId, SwarmId};

use super::node::{NODE_LAYOUT, put_node, take_node};
use super::{
    Answer, BodyNumber, Key, ManifestBody, ManifestHead, Record, RequestRecord, SeederRecord, Settings, Swarm,
    TreeNumber,
};

/// Version of every layout but an inode's.
const LAYOUT: u8 = 1;

/// Bytes that are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// A key or a value that this program never writes.
    #[error("a record of the catalog is damaged: {0}")]
    Malformed(&'static str),
    /// A value of a newer program.
    #[error("a record of the catalog has layout {0}, which this program does not know: update it")]
    Layout(u8),
}

pub(super) type Result<T> = std::result::Result<T, SchemaError>;

const SHORT: SchemaError = SchemaError::Malformed("it ends too early");

impl Key {
    /// As the store has it.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(40);
        match self {
            Self::Swarm => out.push(b's'),
            Self::Numbers => out.push(b'c'),
            Self::Settings => out.push(b'o'),
            Self::Node(tree, inode) => {
                out.push(b'i');
                out.put_u32(tree.0);
                out.put_u64(inode.0);
            }
            Self::Entry(tree, directory, name) => {
                out.push(b'e');
                out.put_u32(tree.0);
                out.put_u64(directory.0);
                out.extend_from_slice(name);
            }
            Self::Manifest(digest) => {
                out.push(b'm');
                out.extend_from_slice(digest.as_bytes());
            }
            Self::ManifestPage(body, page) => {
                out.push(b'p');
                out.put_u64(body.0);
                out.put_u32(*page);
            }
            Self::Upload(body) => {
                out.push(b'u');
                out.put_u64(body.0);
            }
            Self::Import(tree) => {
                out.push(b't');
                out.put_u32(tree.0);
            }
            Self::Request(id) => {
                out.push(b'q');
                out.extend_from_slice(id.as_bytes());
            }
            Self::RequestPage(id, page) => {
                out.push(b'r');
                out.extend_from_slice(id.as_bytes());
                out.put_u32(*page);
            }
            Self::Seeder(id) => {
                out.push(b'k');
                out.extend_from_slice(id.as_bytes());
            }
        }
        out.into()
    }

    /// The reverse of [`Self::encode`].
    pub fn decode(key: &[u8]) -> Result<Self> {
        let mut rest = Fields(key);
        let decoded = match rest.u8()? {
            b's' => Self::Swarm,
            b'c' => Self::Numbers,
            b'o' => Self::Settings,
            b'i' => Self::Node(TreeNumber(rest.u32_be()?), InodeNumber(rest.u64_be()?)),
            b'e' => {
                let (tree, directory) = (TreeNumber(rest.u32_be()?), InodeNumber(rest.u64_be()?));
                let name = Bytes::copy_from_slice(rest.take(rest.0.len())?);
                if crate::namespace::Name::new(&name).is_err() {
                    return Err(SchemaError::Malformed("an entry's name breaks the rules"));
                }
                Self::Entry(tree, directory, name)
            }
            b'm' => Self::Manifest(ManifestDigest::new(rest.array()?)),
            b'p' => Self::ManifestPage(BodyNumber(rest.u64_be()?), rest.u32_be()?),
            b'u' => Self::Upload(BodyNumber(rest.u64_be()?)),
            b't' => Self::Import(TreeNumber(rest.u32_be()?)),
            b'q' => Self::Request(RequestId::new(rest.array()?)),
            b'r' => Self::RequestPage(RequestId::new(rest.array()?), rest.u32_be()?),
            b'k' => Self::Seeder(PeerId::new(rest.array()?)),
            _ => return Err(SchemaError::Malformed("a key of an unknown kind")),
        };
        rest.end()?;
        Ok(decoded)
    }
}

impl Record {
    /// As the store has it.
    pub fn encode(&self) -> Bytes {
        if let Self::Page(bytes) = self {
            return bytes.clone();
        }
        let mut out = vec![if let Self::Node(_) = self { NODE_LAYOUT } else { LAYOUT }];
        match self {
            Self::Page(_) | Self::Mark => {}
            Self::Swarm(swarm) => {
                out.extend_from_slice(swarm.id.as_bytes());
                out.put_u32_le(swarm.tree.0);
            }
            Self::Numbers(next) => out.put_u64_le(*next),
            Self::Settings(settings) => {
                out.put_u32_le(settings.replicas);
                out.put_u32_le(settings.min_replicas);
            }
            Self::Node(node) => put_node(&mut out, node),
            Self::Entry(inode) => out.put_u64_le(inode.0),
            Self::Manifest(head) => put_head(&mut out, head),
            Self::Request(request) => {
                out.put_i64_le(request.at_ns);
                out.extend_from_slice(&request.operations);
                match &request.answer {
                    Answer::Expired => out.push(0),
                    Answer::Here(answer) => {
                        out.push(1);
                        out.extend_from_slice(answer);
                    }
                    Answer::Pages(pages) => {
                        out.push(2);
                        out.put_u32_le(*pages);
                    }
                }
            }
            Self::Seeder(seeder) => {
                out.put_u64_le(seeder.capacity_bytes);
                out.put_i64_le(seeder.last_seen_ns);
                out.push(u8::from(seeder.draining));
                for text in [&seeder.host, &seeder.zone, &seeder.address] {
                    put_blob(&mut out, text.as_bytes());
                }
            }
        }
        out.into()
    }

    /// Read the value that stands under `key`.
    pub fn decode(key: &Key, value: &Bytes) -> Result<Self> {
        if matches!(key, Key::ManifestPage(..) | Key::RequestPage(..)) {
            return Ok(Self::Page(value.clone()));
        }
        let mut rest = Fields(value);
        let layout = rest.u8()?;
        if layout != LAYOUT && !matches!(key, Key::Node(..)) {
            return Err(SchemaError::Layout(layout));
        }
        let record = match key {
            Key::Swarm => Self::Swarm(Swarm { id: SwarmId::new(rest.array()?), tree: TreeNumber(rest.u32()?) }),
            Key::Numbers => Self::Numbers(rest.u64()?),
            Key::Settings => Self::Settings(Settings { replicas: rest.u32()?, min_replicas: rest.u32()? }),
            Key::Node(..) => Self::Node(take_node(&mut rest, layout)?),
            Key::Entry(..) => Self::Entry(InodeNumber(rest.u64()?)),
            Key::Manifest(_) => Self::Manifest(take_head(&mut rest)?),
            Key::Upload(_) | Key::Import(_) => Self::Mark,
            Key::Request(_) => {
                let (at_ns, operations) = (rest.i64()?, rest.array()?);
                let answer = match rest.u8()? {
                    0 => Answer::Expired,
                    1 => Answer::Here(Bytes::copy_from_slice(rest.take(rest.0.len())?)),
                    2 => Answer::Pages(rest.u32()?),
                    _ => return Err(SchemaError::Malformed("an answer of an unknown kind")),
                };
                Self::Request(RequestRecord { at_ns, operations, answer })
            }
            Key::Seeder(_) => {
                let (capacity_bytes, last_seen_ns, draining) = (rest.u64()?, rest.i64()?, rest.u8()? != 0);
                let (host, zone, address) = (rest.text()?, rest.text()?, rest.text()?);
                Self::Seeder(SeederRecord { host, zone, address, capacity_bytes, draining, last_seen_ns })
            }
            Key::ManifestPage(..) | Key::RequestPage(..) => return Err(SHORT),
        };
        rest.end()?;
        Ok(record)
    }
}

fn put_head(out: &mut Vec<u8>, head: &ManifestHead) {
    out.put_u64_le(head.file_bytes);
    out.put_u32_le(head.length);
    match &head.body {
        ManifestBody::Here(bytes) => {
            out.push(0);
            out.extend_from_slice(bytes);
        }
        ManifestBody::Pages(body) => {
            out.push(1);
            out.put_u64_le(body.0);
        }
    }
}

fn take_head(rest: &mut Fields<'_>) -> Result<ManifestHead> {
    let (file_bytes, length) = (rest.u64()?, rest.u32()?);
    let body = match rest.u8()? {
        0 => ManifestBody::Here(Bytes::copy_from_slice(rest.take(length as usize)?)),
        1 => ManifestBody::Pages(BodyNumber(rest.u64()?)),
        _ => return Err(SchemaError::Malformed("a manifest of an unknown kind")),
    };
    Ok(ManifestHead { file_bytes, length, body })
}

pub(super) fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    // Texts come from messages, which are far below 4 GiB.
    out.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(bytes);
}

/// What is left of a record's bytes.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

macro_rules! number {
    ($name:ident, $get:ident, $kind:ty) => {
        pub(super) fn $name(&mut self) -> Result<$kind> {
            match self.0.len() < size_of::<$kind>() {
                true => Err(SHORT),
                false => Ok(self.0.$get()),
            }
        }
    };
}

impl<'a> Fields<'a> {
    number!(u8, get_u8, u8);
    number!(u16, get_u16_le, u16);
    number!(u32, get_u32_le, u32);
    number!(u64, get_u64_le, u64);
    number!(i64, get_i64_le, i64);
    number!(u32_be, get_u32, u32);
    number!(u64_be, get_u64, u64);

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn blob(&mut self) -> Result<&'a [u8]> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    pub(super) fn text(&mut self) -> Result<String> {
        String::from_utf8(self.blob()?.to_vec()).map_err(|_| SchemaError::Malformed("a text that is not UTF-8"))
    }

    fn end(&self) -> Result<()> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(SchemaError::Malformed("bytes after its end")),
        }
    }
}
