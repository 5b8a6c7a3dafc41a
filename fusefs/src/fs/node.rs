//! An inode as the mount knows it: what the catalog says, checked once when it came from the wire.

use bytes::Bytes;
use swarm_proto::{InodeNumber, ManifestDigest, v1};

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
}

/// An inode at one revision of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its number in the catalog, which is also its number in the mount.
    pub inode: InodeNumber,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Hard links.
    pub links: u32,
    /// Nanoseconds since 1970.
    pub modified_ns: i64,
    /// Nanoseconds since 1970.
    pub changed_ns: i64,
    /// Nanoseconds since 1970.
    pub created_ns: i64,
    /// The content of a file; none if it is empty.
    pub content: Option<ManifestDigest>,
    /// Where a symlink points.
    pub target: Bytes,
    /// Increases with each new content.
    pub version: u64,
    /// Nanoseconds since 1970; reading does not change it.
    pub accessed_ns: i64,
    /// Bytes that are not holes.
    pub allocated: u64,
    /// Number of a device.
    pub device: u64,
    /// Extended attributes, in the order of their names' bytes.
    pub extended: Vec<(Bytes, Bytes)>,
}

/// A record of the catalog that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("inode {inode} of the catalog has a wrong {field}")]
pub struct NodeError {
    /// Its number.
    pub inode: u64,
    /// What is wrong with it.
    pub field: &'static str,
}

impl TryFrom<v1::Node> for Node {
    type Error = NodeError;
    fn try_from(node: v1::Node) -> Result<Self, NodeError> {
        let wrong = |field| NodeError { inode: node.inode, field };
        let kind = match node.kind() {
            v1::NodeKind::File => Kind::File,
            v1::NodeKind::Directory => Kind::Directory,
            v1::NodeKind::Symlink => Kind::Symlink,
            v1::NodeKind::Fifo => Kind::Fifo,
            v1::NodeKind::Socket => Kind::Socket,
            v1::NodeKind::CharacterDevice => Kind::CharacterDevice,
            v1::NodeKind::BlockDevice => Kind::BlockDevice,
            v1::NodeKind::Unspecified => return Err(wrong("kind")),
        };
        let content = match node.manifest_digest.len() {
            0 => None,
            _ => {
                let digest = ManifestDigest::try_from(&node.manifest_digest[..]);
                Some(digest.map_err(|_| wrong("manifest digest"))?)
            }
        };
        if node.inode == 0 {
            return Err(wrong("number"));
        }
        if i64::try_from(node.size).is_err() || (kind == Kind::File && content.is_none() && node.size > 0) {
            return Err(wrong("size"));
        }
        Ok(Self {
            inode: InodeNumber(node.inode),
            kind,
            mode: u16::try_from(node.mode & 0o7777).expect("twelve bits"),
            uid: node.uid,
            gid: node.gid,
            size: node.size,
            links: node.links,
            modified_ns: node.modified_ns,
            changed_ns: node.changed_ns,
            created_ns: node.created_ns,
            content,
            target: node.link_target,
            version: node.version,
            accessed_ns: node.accessed_ns,
            allocated: node.allocated_bytes,
            device: node.device,
            extended: node.extended.into_iter().map(|one| (one.name, one.value)).collect(),
        })
    }
}
