//! **PURE.** The names: what an operation on the catalog does, or why it is refused.
//!
//! (image, operation, now, fresh numbers) → a conditional write and a result, or a [`Refusal`]. Applying
//! the committed write to the image gives the next image. Nothing here knows of stores or requests.
//!
//! * [`image`]: all names in memory, and how a committed write changes them
//! * [`draft`]: an image with writes that are planned but not committed yet
//! * [`plan`]: the operations, with POSIX's rules
//! * [`extended`]: extended attributes
//!
//! Invariants of an image: every entry names an inode that exists; an inode other than the root has as
//! many entries as links (a directory has exactly one, and 2 + its subdirectories links), and only a file
//! may have none: it has lost its last name and is an **orphan**, which lives until nobody has it open;
//! directories form a tree whose root is inode 1; numbers are never used again.

pub mod draft;
pub mod extended;
pub mod image;
pub mod plan;

#[cfg(test)]
mod model;

use std::borrow::Borrow;

use swarm_proto::{Fault, InodeNumber, ManifestDigest};

pub use draft::Draft;
pub use extended::{Extended, ExtendedName};
pub use image::{Change, Counts, Image};
pub use plan::{Fresh, Operation, Planned};

/// Longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// Longest target of a symlink, in bytes: `PATH_MAX` without its NUL.
pub const MAX_TARGET_BYTES: usize = 4095;
/// Most links of an inode, and so most subdirectories of a directory.
pub const MAX_LINKS: u32 = 1 << 30;
/// Permission bits with set-id and sticky.
pub const MODE_BITS: u32 = 0o7777;

/// An operation that is refused; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What the caller's errno shall be.
    pub fault: Fault,
    /// Why, in words.
    pub message: String,
    /// The inode as it is, where that helps whoever asked.
    pub node: Option<Box<(InodeNumber, Node)>>,
}

impl Refusal {
    /// A refusal.
    pub fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into(), node: None }
    }

    /// The same, with the inode as it is.
    pub fn with_node(self, inode: InodeNumber, node: Node) -> Self {
        Self { node: Some(Box::new((inode, node))), ..self }
    }
}

/// One component of a path: 1 to 255 bytes without `/` and NUL, neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

impl Name {
    /// Check the rules.
    ///
    /// Errors: [`Fault::NameTooLong`], [`Fault::Invalid`].
    pub fn new(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() > MAX_NAME_BYTES {
            return Err(Refusal::new(Fault::NameTooLong, format!("a name of {} bytes, the limit is 255", bytes.len())));
        }
        let problem = match bytes {
            b"" => "a name is empty",
            b"." | b".." => "a name is . or ..",
            _ if bytes.contains(&b'/') => "a name contains /",
            _ if bytes.contains(&0) => "a name contains NUL",
            _ => return Ok(Self(bytes.into())),
        };
        Err(Refusal::new(Fault::Invalid, problem))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// An inode, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Permission bits, 0 to 07777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Entries that name it; for a directory 2 + its subdirectories.
    pub links: u32,
    /// When it was read, as utimensat(2) set it, else when it was made. Nanoseconds since 1970, as the three below.
    pub accessed_ns: i64,
    /// Last change of its content or its entries.
    pub modified_ns: i64,
    /// Last change of anything.
    pub changed_ns: i64,
    /// When it was made.
    pub created_ns: i64,
    /// Extended attributes; only of files and directories.
    pub extended: Extended,
    /// What it is.
    pub body: Body,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A file.
    File(Content),
    /// A directory; its entries are records of their own.
    Directory {
        /// The directory that names it; the root's is itself.
        parent: InodeNumber,
    },
    /// A symbolic link.
    Symlink {
        /// Where to; 1 to 4,095 bytes without NUL.
        target: Box<[u8]>,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A device.
    Device(Device),
}

/// Which device a special file stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Which of the two sorts.
    pub kind: DeviceKind,
    /// Major and minor number, as Linux encodes them.
    pub number: u64,
}

/// The two sorts of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Of characters.
    Character,
    /// Of blocks.
    Block,
}

/// The content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Content {
    /// Bytes.
    pub size: u64,
    /// Bytes of it that are not holes, at most `size`.
    pub allocated: u64,
    /// Grows with each new content, and no two inodes ever have the same.
    pub version: u64,
    /// Digest of its manifest. None: it is empty.
    pub manifest: Option<ManifestDigest>,
}

impl Node {
    /// Whether it is a file that has lost its last name.
    pub fn is_orphan(&self) -> bool {
        self.links == 0 && self.content().is_some()
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory { .. })
    }

    /// Its content, if it is a file.
    pub fn content(&self) -> Option<Content> {
        match self.body {
            Body::File(content) => Some(content),
            _ => None,
        }
    }

    /// Bytes, as stat(2) says them.
    pub fn size(&self) -> u64 {
        match &self.body {
            Body::File(content) => content.size,
            Body::Symlink { target } => target.len() as u64,
            _ => 0,
        }
    }
}

/// One record of the namespace that a commit writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameWrite {
    /// An inode. None: it is gone.
    Node(InodeNumber, Option<Node>),
    /// An entry of a directory. None: it is gone.
    Entry(InodeNumber, Name, Option<InodeNumber>),
}

/// A record that a plan relied on. If it has changed since, the plan is void.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Relied {
    /// That this inode is as it was; it existed.
    Node(InodeNumber),
    /// That this entry is as it was; it existed.
    Entry(InodeNumber, Name),
    /// That there was no such entry.
    NoEntry(InodeNumber, Name),
}
