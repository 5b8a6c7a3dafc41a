//! Extended attributes: what people store, and what the swarm says of a file.
//!
//! Stored are those in `user.`; no other namespace has any. Below `user.swarm.`, never stored, and found by their names
//! alone, as whoever copies all that are listed could not set them:
//!
//! * `user.swarm.hash`: 64 hex digits. Of a file that is one whole segment the segment's id, which is what
//!   `b3sum` prints for the file; of an empty file the BLAKE3 of nothing, likewise; of any other file the
//!   digest of its manifest, which says whether two files are equal only if they were cut alike.
//! * `user.swarm.holders`: one line a peer: its id, its address, and how many of the file's distinct
//!   segments it has, of how many.
//! * `user.swarm.cached`: bytes of the file that are in this mount's cache, of how many.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use swarm_proto::v1::operation::Operation;
use swarm_proto::{Extent, InodeNumber, SegmentId, v1};

use super::FileSystem;
use super::content::Version;
use super::node::{Kind, Node};
use crate::errno::Errno;

/// Names of those that people store start with this, and are longer.
pub const USER_PREFIX: &[u8] = b"user.";
/// Names of those that nobody stores start with this.
const VIRTUAL_PREFIX: &[u8] = b"user.swarm.";
/// Segments that are located for `holders`; a larger file is judged by its first ones.
const LOCATED_MOST: usize = 4_096;
/// Longest value that Linux passes on.
const VALUE_BYTES_MOST: usize = 64 * 1024;
/// All names and values of an inode together; the catalog sees to it.
const STORED_BYTES_MOST: usize = 8 * 1024;

pub use v1::ExtendedMode;

impl FileSystem {
    /// Names of the attributes that an inode has, each ended by a zero byte, if they are known at once.
    pub fn attribute_names_known(&self, inode: InodeNumber) -> Option<Vec<u8>> {
        self.attributes_known(inode)?.node.map(|node| names_of(&node))
    }

    /// Names of the attributes that an inode has, each ended by a zero byte.
    pub async fn attribute_names(&self, inode: InodeNumber) -> Result<Vec<u8>, Errno> {
        Ok(names_of(&self.node(inode).await?.0))
    }

    /// Store an attribute.
    ///
    /// Errors: [`Errno::OPNOTSUPP`] outside `user.`; [`Errno::PERM`] for what nobody stores; [`Errno::EXIST`] and
    ///         [`Errno::NODATA`] as `mode` says; [`Errno::NOSPC`] if the inode has too many or too long ones.
    pub async fn set_extended(
        &self,
        inode: InodeNumber,
        name: Bytes,
        value: Bytes,
        mode: ExtendedMode,
    ) -> Result<(), Errno> {
        may_be_stored(&name)?;
        if name.len() + value.len() > STORED_BYTES_MOST {
            return Err(Errno::NOSPC);
        }
        let set = v1::SetExtended { inode: inode.0, name, value: Some(value), mode: mode.into() };
        self.change_inode(inode, Operation::SetExtended(set)).await.map(drop)
    }

    /// Remove a stored attribute.
    ///
    /// Errors: as [`Self::set_extended`]; [`Errno::NODATA`] if there is none.
    pub async fn remove_extended(&self, inode: InodeNumber, name: Bytes) -> Result<(), Errno> {
        // Never stored: there is nothing that could stay.
        if name.starts_with(VIRTUAL_PREFIX) {
            return Ok(());
        }
        may_be_stored(&name)?;
        let set = v1::SetExtended { inode: inode.0, name, value: None, mode: ExtendedMode::Set.into() };
        self.change_inode(inode, Operation::SetExtended(set)).await.map(drop)
    }

    /// The value of an attribute.
    ///
    /// Errors: [`Errno::NODATA`] if it has none of that name.
    pub async fn attribute(&self, inode: InodeNumber, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let Some(what) = name.strip_prefix(VIRTUAL_PREFIX) else { return self.stored(inode, name).await };
        if !matches!(what, b"hash" | b"holders" | b"cached") {
            return Err(Errno::NODATA);
        }
        let version = match self.open.opened(inode) {
            Some((_, version)) => version,
            None => {
                let node = self.node_now(inode).await?;
                if node.kind != Kind::File {
                    return Err(Errno::NODATA);
                }
                self.version_of(&node, None).await?
            }
        };
        let text = match what {
            b"hash" => hash(&version),
            b"cached" => format!("{}/{}", self.content.cached_bytes(&version), version.manifest.size()),
            _ => self.holders(&version).await?,
        };
        Ok(text.into_bytes())
    }

    async fn stored(&self, inode: InodeNumber, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let node = self.node_now(inode).await?;
        let found = node.extended.iter().find(|(stored, _)| stored == name);
        found.map(|(_, value)| value.to_vec()).ok_or(Errno::NODATA)
    }

    async fn node_now(&self, inode: InodeNumber) -> Result<Arc<Node>, Errno> {
        match self.attributes_known(inode).and_then(|found| found.node) {
            Some(node) => Ok(node),
            None => Ok(self.node(inode).await?.0),
        }
    }

    async fn holders(&self, version: &Version) -> Result<String, Errno> {
        let mut segments: Vec<SegmentId> = version.manifest.segments().map(|segment| segment.id).collect();
        segments.sort_unstable();
        segments.dedup();
        segments.truncate(LOCATED_MOST);
        if segments.is_empty() {
            return Ok(String::new());
        }
        let count = segments.len();
        let located = self.locator.locate(segments).await.map_err(|error| {
            tracing::debug!(error, "locate holders");
            Errno::TIMEDOUT
        })?;
        let mut peers: BTreeMap<(String, String), (usize, usize)> = BTreeMap::new();
        for holder in located.into_iter().flatten() {
            let (whole, partial) = peers.entry((holder.peer.id.to_string(), holder.peer.address)).or_default();
            match holder.partial {
                true => *partial += 1,
                false => *whole += 1,
            }
        }
        let mut text = String::new();
        for ((id, address), (whole, partial)) in peers {
            let mut line = format!("{id} {address} {whole}/{count}");
            if partial > 0 {
                // Writing to a string cannot fail.
                let _ = write!(line, " and {partial} in part");
            }
            if text.len() + line.len() + 1 > VALUE_BYTES_MOST {
                break;
            }
            text.push_str(&line);
            text.push('\n');
        }
        Ok(text)
    }
}

fn may_be_stored(name: &[u8]) -> Result<(), Errno> {
    match name.strip_prefix(USER_PREFIX) {
        None => Err(Errno::OPNOTSUPP),
        Some(b"") => Err(Errno::INVAL),
        Some(_) if name.starts_with(VIRTUAL_PREFIX) => Err(Errno::PERM),
        Some(_) => Ok(()),
    }
}

fn names_of(node: &Node) -> Vec<u8> {
    let mut names = Vec::new();
    for (name, _) in &node.extended {
        names.extend_from_slice(name);
        names.push(0);
    }
    names
}

fn hash(version: &Version) -> String {
    match (version.manifest.extents(), version.digest) {
        ([], _) => blake3::hash(b"").to_string(),
        ([Extent::Data { segment, offset_in_segment: 0, length }], _) if *length == segment.length => {
            segment.id.to_string()
        }
        (_, Some(digest)) => digest.to_string(),
        (_, None) => version.manifest.digest().to_string(),
    }
}
