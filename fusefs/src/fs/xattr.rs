//! What the swarm says of a file, as extended attributes.
//!
//! * `user.swarm.hash`: 64 hex digits. Of a file that is one whole segment the segment's id, which is what
//!   `b3sum` prints for the file; of an empty file the BLAKE3 of nothing, likewise; of any other file the
//!   digest of its manifest, which says whether two files are equal only if they were cut alike.
//! * `user.swarm.holders`: one line a peer: its id, its address, and how many of the file's distinct
//!   segments it has, of how many.
//! * `user.swarm.cached`: bytes of the file that are in this mount's cache, of how many.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use swarm_proto::{Extent, InodeNumber, SegmentId};

use super::FileSystem;
use super::content::Version;
use super::node::Kind;
use crate::errno::Errno;

/// Names start with this; all others are absent.
pub const PREFIX: &[u8] = b"user.swarm.";
/// What a file has, as `listxattr` gives it.
const LIST: &[u8] = b"user.swarm.hash\0user.swarm.holders\0user.swarm.cached\0";
/// Segments that are located for `holders`; a larger file is judged by its first ones.
const LOCATED_MOST: usize = 4_096;
/// Longest value that Linux passes on.
const VALUE_BYTES_MOST: usize = 64 * 1024;

impl FileSystem {
    /// Names of the attributes that an inode has, each ended by a zero byte, if they are known at once.
    pub fn attribute_names_known(&self, inode: InodeNumber) -> Option<&'static [u8]> {
        self.attributes_known(inode)?.node.map(|node| names_of(node.kind))
    }

    /// Names of the attributes that an inode has, each ended by a zero byte.
    pub async fn attribute_names(&self, inode: InodeNumber) -> Result<&'static [u8], Errno> {
        Ok(names_of(self.node(inode).await?.0.kind))
    }

    /// The value of an attribute of a file.
    ///
    /// Errors: [`Errno::NODATA`] if it has none of that name.
    pub async fn attribute(&self, inode: InodeNumber, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let what = name.strip_prefix(PREFIX).ok_or(Errno::NODATA)?;
        if !matches!(what, b"hash" | b"holders" | b"cached") {
            return Err(Errno::NODATA);
        }
        let version = match self.open.opened(inode) {
            Some((_, version)) => version,
            None => {
                let node = match self.attributes_known(inode).and_then(|found| found.node) {
                    Some(node) => node,
                    None => self.node(inode).await?.0,
                };
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

const fn names_of(kind: Kind) -> &'static [u8] {
    match kind {
        Kind::File => LIST,
        _ => b"",
    }
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
