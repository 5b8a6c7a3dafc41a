//! **PURE.** The byte layout of an exported catalog.
//!
//! ```text
//! "SWARMCAT" version:u32=1
//! records    kind:u8 length:u32 payload
//! trailer    BLAKE3 of everything before it: [u8;32]
//! ```
//! All little-endian. The first record is the header, the last one the end. Nodes, names and seeders have
//! the layouts of the store's records, each with its own version.
//!
//! Invariant: a reader that finished has seen every byte, the right counts, and a trailer that matches.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use swarm_proto::{InodeNumber, ManifestDigest, PeerId, Revision, SwarmId};

use crate::namespace::{Name, Node};
use crate::store::schema::{Key, Record, SchemaError, SeederRecord, Settings, TreeNumber};

const MAGIC: &[u8; 8] = b"SWARMCAT";
const VERSION: u32 = 1;
const FRAME_BYTES: usize = 5;
const TRAILER_BYTES: usize = 32;
/// Longest payload that a reader accepts.
const MAX_PAYLOAD_BYTES: usize = 512 * 1024;
/// Bytes of a manifest in one record, at most.
pub const PIECE_BYTES: usize = 256 * 1024;

/// Why a file is not an exported catalog.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It is something else.
    #[error("this is not an exported catalog")]
    Foreign,
    /// Written by a newer program.
    #[error("an exported catalog of version {0}, this program reads version {VERSION}: update it")]
    Version(u32),
    /// It was cut or changed.
    #[error("the exported catalog is damaged: {0}")]
    Damaged(&'static str),
    /// One of its records is.
    #[error("the exported catalog is damaged: {0}")]
    Record(#[from] SchemaError),
}

/// Whether a file that begins with these bytes may be an exported catalog.
pub fn may_begin(bytes: &[u8]) -> bool {
    bytes.iter().zip(MAGIC).all(|(byte, magic)| byte == magic)
}

/// A record of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Kind 1. swarm:[u8;16] replicas:u32 min_replicas:u32 revision:u64 at:i64.
    Header(Header),
    /// Kind 2. peer:[u8;16], then the store's record.
    Seeder(PeerId, SeederRecord),
    /// Kind 3. inode:u64, then the store's record. Numbers mean something in this file only.
    Node(InodeNumber, Node),
    /// Kind 4. directory:u64 inode:u64 name. After the nodes.
    Entry(InodeNumber, Name, InodeNumber),
    /// Kind 5. digest:[u8;32] last:u8 bytes. Pieces of one manifest follow each other.
    Manifest {
        /// Whose bytes.
        digest: ManifestDigest,
        /// No more pieces of it follow.
        last: bool,
        /// At most [`PIECE_BYTES`].
        data: Bytes,
    },
    /// Kind 6. nodes:u64 entries:u64 manifests:u64.
    End(Totals),
}

/// What the file is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which swarm.
    pub swarm: SwarmId,
    /// Its settings.
    pub settings: Settings,
    /// At which revision.
    pub revision: Revision,
    /// When, nanoseconds since 1970.
    pub at_ns: i64,
}

/// How many records there are of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Inodes.
    pub nodes: u64,
    /// Names.
    pub entries: u64,
    /// Manifests, not pieces.
    pub manifests: u64,
}

/// Writes the file, piece by piece.
pub struct ItemWriter {
    hasher: blake3::Hasher,
    totals: Totals,
}

impl ItemWriter {
    /// Begin; the first bytes go to `out`.
    pub fn begin(header: &Header, out: &mut BytesMut) -> Self {
        let mut writer = Self { hasher: blake3::Hasher::new(), totals: Totals::default() };
        let start = out.len();
        out.put_slice(MAGIC);
        out.put_u32_le(VERSION);
        writer.hasher.update(&out[start..]);
        writer.push(&Item::Header(*header), out);
        writer
    }

    /// One more record.
    pub fn push(&mut self, item: &Item, out: &mut BytesMut) {
        let start = out.len();
        out.put_slice(&[0; FRAME_BYTES]);
        out[start] = match item {
            Item::Header(header) => {
                out.put_slice(header.swarm.as_bytes());
                out.put_u32_le(header.settings.replicas);
                out.put_u32_le(header.settings.min_replicas);
                out.put_u64_le(header.revision.0);
                out.put_i64_le(header.at_ns);
                1
            }
            Item::Seeder(id, seeder) => {
                out.put_slice(id.as_bytes());
                out.put_slice(&Record::Seeder(seeder.clone()).encode());
                2
            }
            Item::Node(inode, node) => {
                self.totals.nodes += 1;
                out.put_u64_le(inode.0);
                out.put_slice(&Record::Node(node.clone()).encode());
                3
            }
            Item::Entry(directory, name, inode) => {
                self.totals.entries += 1;
                out.put_u64_le(directory.0);
                out.put_u64_le(inode.0);
                out.put_slice(name.as_bytes());
                4
            }
            Item::Manifest { digest, last, data } => {
                self.totals.manifests += u64::from(*last);
                out.put_slice(digest.as_bytes());
                out.put_u8(u8::from(*last));
                out.put_slice(data);
                5
            }
            Item::End(totals) => {
                out.put_u64_le(totals.nodes);
                out.put_u64_le(totals.entries);
                out.put_u64_le(totals.manifests);
                6
            }
        };
        // Payloads are at most a piece of a manifest and its head.
        let length = u32::try_from(out.len() - start - FRAME_BYTES).unwrap_or(u32::MAX);
        out[start + 1..start + FRAME_BYTES].copy_from_slice(&length.to_le_bytes());
        self.hasher.update(&out[start..]);
    }

    /// The end and the trailer.
    pub fn end(mut self, out: &mut BytesMut) {
        let totals = self.totals;
        self.push(&Item::End(totals), out);
        out.put_slice(self.hasher.finalize().as_bytes());
    }
}

/// Reads the file, from pieces of any size.
#[derive(Default)]
pub struct ItemReader {
    hasher: blake3::Hasher,
    pending: BytesMut,
    totals: Totals,
    at: Place,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[default]
    Start,
    Header,
    Records,
    Trailer,
    Done,
}

impl ItemReader {
    /// More bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next record that is wholly there; None: push more. The end is not given out.
    pub fn next_item(&mut self) -> Result<Option<Item>, FormatError> {
        loop {
            match self.at {
                Place::Start => {
                    let enough = MAGIC.len() + 4;
                    let known = self.pending.len().min(MAGIC.len());
                    if self.pending[..known] != MAGIC[..known] {
                        return Err(FormatError::Foreign);
                    }
                    if self.pending.len() < enough {
                        return Ok(None);
                    }
                    self.hasher.update(&self.pending[..enough]);
                    self.pending.advance(MAGIC.len());
                    match self.pending.get_u32_le() {
                        VERSION => self.at = Place::Header,
                        other => return Err(FormatError::Version(other)),
                    }
                }
                Place::Header | Place::Records => {
                    let Some((kind, payload)) = self.frame()? else { return Ok(None) };
                    let item = parse(kind, payload)?;
                    match (&item, self.at) {
                        (Item::Header(_), Place::Header) => self.at = Place::Records,
                        (_, Place::Header) => return Err(FormatError::Damaged("it does not begin with its header")),
                        (Item::Header(_), _) => return Err(FormatError::Damaged("it has two headers")),
                        (Item::End(totals), _) if *totals != self.totals => {
                            return Err(FormatError::Damaged("records are missing"));
                        }
                        (Item::End(_), _) => {
                            self.at = Place::Trailer;
                            continue;
                        }
                        (Item::Node(..), _) => self.totals.nodes += 1,
                        (Item::Entry(..), _) => self.totals.entries += 1,
                        (Item::Manifest { last, .. }, _) => self.totals.manifests += u64::from(*last),
                        (Item::Seeder(..), _) => {}
                    }
                    return Ok(Some(item));
                }
                Place::Trailer if self.pending.len() < TRAILER_BYTES => return Ok(None),
                Place::Trailer => {
                    if self.pending[..TRAILER_BYTES] != self.hasher.finalize().as_bytes()[..] {
                        return Err(FormatError::Damaged("its checksum does not match"));
                    }
                    self.pending.advance(TRAILER_BYTES);
                    self.at = Place::Done;
                }
                Place::Done if self.pending.is_empty() => return Ok(None),
                Place::Done => return Err(FormatError::Damaged("bytes after its end")),
            }
        }
    }

    /// Whether everything was there and right; how much it was.
    pub fn finish(&self) -> Result<Totals, FormatError> {
        match self.at {
            Place::Done if self.pending.is_empty() => Ok(self.totals),
            Place::Start if self.pending.is_empty() => Err(FormatError::Damaged("it is empty")),
            _ => Err(FormatError::Damaged("it ends too early")),
        }
    }

    fn frame(&mut self) -> Result<Option<(u8, Bytes)>, FormatError> {
        let Some(frame) = self.pending.first_chunk::<FRAME_BYTES>() else { return Ok(None) };
        let [kind, length @ ..] = *frame;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_PAYLOAD_BYTES {
            return Err(FormatError::Damaged("a record is too long"));
        }
        if self.pending.len() < FRAME_BYTES + length {
            return Ok(None);
        }
        self.hasher.update(&self.pending[..FRAME_BYTES + length]);
        self.pending.advance(FRAME_BYTES);
        Ok(Some((kind, self.pending.split_to(length).freeze())))
    }
}

fn parse(kind: u8, mut payload: Bytes) -> Result<Item, FormatError> {
    const SHORT: FormatError = FormatError::Damaged("a record is too short");
    let fixed = match kind {
        1 | 4 => 16,
        2 => PeerId::LENGTH,
        3 => 8,
        5 => ManifestDigest::LENGTH + 1,
        6 => 24,
        _ => return Err(FormatError::Damaged("a record of an unknown kind")),
    };
    if payload.len() < fixed {
        return Err(SHORT);
    }
    // No tree has this number; it only says which layout to read.
    let tree = TreeNumber(0);
    Ok(match kind {
        1 if payload.len() != 40 => return Err(FormatError::Damaged("a header of another length")),
        1 => Item::Header(Header {
            swarm: SwarmId::new(array(&mut payload)),
            settings: Settings { replicas: payload.get_u32_le(), min_replicas: payload.get_u32_le() },
            revision: Revision(payload.get_u64_le()),
            at_ns: payload.get_i64_le(),
        }),
        2 => {
            let id = PeerId::new(array(&mut payload));
            match Record::decode(&Key::Seeder(id), &payload)? {
                Record::Seeder(seeder) => Item::Seeder(id, seeder),
                _ => return Err(SHORT),
            }
        }
        3 => {
            let inode = InodeNumber(payload.get_u64_le());
            match Record::decode(&Key::Node(tree, inode), &payload)? {
                Record::Node(node) => Item::Node(inode, node),
                _ => return Err(SHORT),
            }
        }
        4 => {
            let (directory, inode) = (InodeNumber(payload.get_u64_le()), InodeNumber(payload.get_u64_le()));
            let name = Name::new(&payload).map_err(|_| FormatError::Damaged("a name breaks the rules"))?;
            Item::Entry(directory, name, inode)
        }
        5 => {
            let digest = ManifestDigest::new(array(&mut payload));
            let last = match payload.get_u8() {
                0 => false,
                1 => true,
                _ => return Err(FormatError::Damaged("a manifest's piece is odd")),
            };
            Item::Manifest { digest, last, data: payload }
        }
        _ if payload.len() != fixed => return Err(FormatError::Damaged("bytes after a record's end")),
        _ => Item::End(Totals {
            nodes: payload.get_u64_le(),
            entries: payload.get_u64_le(),
            manifests: payload.get_u64_le(),
        }),
    })
}

/// The caller has seen that so many bytes are there.
fn array<const N: usize>(payload: &mut Bytes) -> [u8; N] {
    let mut bytes = [0; N];
    payload.copy_to_slice(&mut bytes);
    bytes
}
