//! What there is to put: sources walked into a list of folders and of what lies in them.
//!
//! Invariant: a folder stands after the folder that holds it.

use std::fs::{self, Metadata};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use swarm_proto::v1::{NodeKind, Ownership};

use crate::cli::exit::{Exit, Failure};
use crate::cli::name::escape;

/// Whether symlinks are copied, or what they lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// As links.
    Copy,
    /// What they lead to.
    Follow,
}

/// A folder of the swarm that is there or shall be.
#[derive(Debug)]
pub(crate) struct Folder {
    /// Its inode, once it is there.
    pub(crate) inode: Option<u64>,
    /// Index of the folder that holds it; none for one that is there.
    pub(crate) parent: Option<usize>,
    pub(crate) name: Vec<u8>,
    pub(crate) ownership: Ownership,
    /// Where it comes from.
    pub(crate) source: PathBuf,
    /// Whether this command made it, so that it gets the source's times.
    pub(crate) made: bool,
}

/// Something in a folder that is not a folder.
#[derive(Debug)]
pub(crate) struct Item {
    /// Index of the folder that holds it.
    pub(crate) parent: usize,
    pub(crate) name: Vec<u8>,
    pub(crate) source: PathBuf,
    pub(crate) ownership: Ownership,
}

/// What is only an entry, without content.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// To this target.
    Symlink(Vec<u8>),
    /// A fifo or a socket.
    Special(NodeKind),
}

/// All there is to put.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) folders: Vec<Folder>,
    /// With their sizes.
    pub(crate) files: Vec<(Item, u64)>,
    pub(crate) entries: Vec<(Item, Entry)>,
    pub(crate) failures: Vec<Failure>,
}

impl Plan {
    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, size)| size).sum()
    }

    /// A folder that is there; returns its index.
    pub(crate) fn existing(&mut self, inode: u64) -> usize {
        let known = self.folders.iter().position(|folder| folder.inode == Some(inode));
        known.unwrap_or_else(|| {
            self.folders.push(Folder {
                inode: Some(inode),
                parent: None,
                name: Vec::new(),
                ownership: Ownership::default(),
                source: PathBuf::new(),
                made: false,
            });
            self.folders.len() - 1
        })
    }

    /// Walk `source`, which becomes `name` in folder `parent`. With no name, the contents of `source`, a
    /// folder, go into `parent` itself.
    ///
    /// Cost: reads every folder below; call it where blocking is allowed.
    pub(crate) fn walk(&mut self, source: &Path, parent: usize, name: Option<&[u8]>, links: Links) {
        let mut rest = match name {
            Some(name) => vec![(source.to_owned(), parent, name.to_vec())],
            None => self.children(source, parent),
        };
        // Folders above the current one, by device and inode, if links are followed: a cycle ends there.
        let mut seen: Vec<(usize, (u64, u64))> = Vec::new();
        while let Some((source, parent, name)) = rest.pop() {
            let meta = match links {
                Links::Copy => fs::symlink_metadata(&source),
                Links::Follow => fs::metadata(&source),
            };
            let meta = match meta {
                Ok(meta) => meta,
                Err(error) => {
                    self.failures.push(Failure::io(escape(source.as_os_str().as_bytes()), &error));
                    continue;
                }
            };
            if !meta.is_dir() {
                self.item(source, parent, name, &meta);
                continue;
            }
            let id = (meta.dev(), meta.ino());
            if links == Links::Follow && self.above(parent).any(|above| seen.contains(&(above, id))) {
                let shown = escape(source.as_os_str().as_bytes());
                self.failures.push(Failure::new(Exit::Failure, format!("{shown}: a link back to a folder above it")));
                continue;
            }
            let index = self.folders.len();
            self.folders.push(Folder {
                inode: None,
                parent: Some(parent),
                name,
                ownership: ownership(&meta),
                source: source.clone(),
                made: false,
            });
            if links == Links::Follow {
                seen.push((index, id));
            }
            rest.extend(self.children(&source, index));
        }
    }

    fn above(&self, index: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(Some(index), |at| self.folders[*at].parent)
    }

    /// The entries of a folder, the first one last.
    fn children(&mut self, source: &Path, parent: usize) -> Vec<(PathBuf, usize, Vec<u8>)> {
        let mut children = Vec::new();
        let listed = fs::read_dir(source).and_then(|entries| {
            for entry in entries {
                let name = entry?.file_name();
                children.push((source.join(&name), parent, name.into_vec()));
            }
            Ok(())
        });
        if let Err(error) = listed {
            self.failures.push(Failure::io(escape(source.as_os_str().as_bytes()), &error));
        }
        children.sort_unstable_by(|a, b| b.2.cmp(&a.2));
        children
    }

    fn item(&mut self, source: PathBuf, parent: usize, name: Vec<u8>, meta: &Metadata) {
        let file_type = meta.file_type();
        let shown = || escape(source.as_os_str().as_bytes());
        let item = |source: PathBuf| Item { parent, name, source, ownership: ownership(meta) };
        let entry = if file_type.is_file() {
            return self.files.push((item(source), meta.len()));
        } else if file_type.is_symlink() {
            match fs::read_link(&source) {
                Ok(target) => Entry::Symlink(target.into_os_string().into_vec()),
                Err(error) => return self.failures.push(Failure::io(shown(), &error)),
            }
        } else if file_type.is_fifo() {
            Entry::Special(NodeKind::Fifo)
        } else if file_type.is_socket() {
            Entry::Special(NodeKind::Socket)
        } else {
            let failure = Failure::new(Exit::Failure, format!("{}: a device, which the swarm cannot hold", shown()));
            return self.failures.push(failure);
        };
        self.entries.push((item(source), entry));
    }
}

/// Mode, owner and time of a source.
pub(crate) fn ownership(meta: &Metadata) -> Ownership {
    Ownership {
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        modified_ns: meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec()),
        inherit: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_tree_is_walked_folders_before_their_contents() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/deep"), b"123").unwrap();
        fs::write(root.path().join("a/file"), b"1").unwrap();
        symlink("nowhere", root.path().join("a/link")).unwrap();
        let mut plan = Plan::default();
        let top = plan.existing(1);
        plan.walk(&root.path().join("a"), top, Some(b"copy"), Links::Copy);
        let names: Vec<&[u8]> = plan.folders.iter().map(|folder| &folder.name[..]).collect();
        assert_eq!(names, [&b""[..], b"copy", b"b"]);
        assert!(plan.folders.iter().enumerate().all(|(n, folder)| folder.parent.is_none_or(|parent| parent < n)));
        assert_eq!(plan.bytes(), 4);
        let files: Vec<&[u8]> = plan.files.iter().map(|(item, _)| &item.name[..]).collect();
        assert_eq!(files, [&b"deep"[..], b"file"]);
        assert_eq!(plan.entries[0].1, Entry::Symlink(b"nowhere".to_vec()));
        assert!(plan.failures.is_empty());
    }

    #[test]
    fn a_cycle_of_links_ends() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("a")).unwrap();
        symlink("..", root.path().join("a/up")).unwrap();
        let mut plan = Plan::default();
        let top = plan.existing(1);
        plan.walk(root.path(), top, Some(b"copy"), Links::Follow);
        assert_eq!((plan.folders.len(), plan.failures.len()), (3, 1), "{plan:?}");
    }

    #[test]
    fn what_is_missing_or_unreadable_is_named_and_the_rest_goes_on() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), b"1").unwrap();
        let mut plan = Plan::default();
        let top = plan.existing(1);
        plan.walk(&root.path().join("gone"), top, Some(b"gone"), Links::Copy);
        plan.walk(root.path(), top, None, Links::Copy);
        assert_eq!((plan.files.len(), plan.failures.len()), (1, 1));
        assert_eq!((plan.failures[0].exit, plan.files[0].0.parent), (Exit::NotFound, top));
    }
}
