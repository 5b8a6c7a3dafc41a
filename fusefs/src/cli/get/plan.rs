//! What there is to get: a tree of the catalog, with where each part of it goes.
//!
//! Invariant: no name of the catalog leads out of the folder it is copied to, whatever the tracker says.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use futures::StreamExt;
use swarm_proto::InodeNumber;
use swarm_proto::v1::{Entry, Node, NodeKind};
use swarm_seeder::tracker_client::{TrackerClient, TrackerError};

use crate::cli::connect::tracker_failure;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::name::escape;
use crate::cli::target::join;

/// Folders that are listed at a time.
const LISTINGS: usize = 16;

/// Something to copy.
#[derive(Debug)]
pub(crate) struct Item {
    /// Where it is in the swarm.
    pub(crate) path: Vec<u8>,
    pub(crate) node: Node,
    /// Where it goes.
    pub(crate) to: PathBuf,
}

/// All there is to get; folders stand before what is in them.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) folders: Vec<Item>,
    pub(crate) files: Vec<Item>,
    /// Symlinks, fifos and sockets.
    pub(crate) entries: Vec<Item>,
    pub(crate) failures: Vec<Failure>,
}

impl Plan {
    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|item| item.node.size).sum()
    }

    /// Add `item` and all below it.
    pub(crate) async fn walk(&mut self, tracker: &TrackerClient, item: Item) -> Outcome {
        let mut level = self.sort(vec![item]);
        while !level.is_empty() {
            let listings = futures::stream::iter(level).map(|index| {
                let inode = InodeNumber(self.folders[index].node.inode);
                async move { (index, tracker.read_dir(inode).await) }
            });
            let listings: Vec<(usize, Result<Vec<Entry>, TrackerError>)> = listings.buffered(LISTINGS).collect().await;
            let mut below = Vec::new();
            for (index, listing) in listings {
                let (path, to) = (self.folders[index].path.clone(), self.folders[index].to.clone());
                for entry in listing.map_err(|error| tracker_failure(escape(&path), &error))? {
                    let path = join(&path, &entry.name);
                    match (is_name(&entry.name), entry.node) {
                        (true, Some(node)) => {
                            below.push(Item { path, node, to: to.join(OsStr::from_bytes(&entry.name)) });
                        }
                        _ => self.failures.push(Failure::new(
                            Exit::Failure,
                            format!("{}: the tracker gives it a name that no file can have", escape(&path)),
                        )),
                    }
                }
            }
            level = self.sort(below);
        }
        Ok(())
    }

    /// Enter items; returns the indices of the folders among them.
    fn sort(&mut self, items: Vec<Item>) -> Vec<usize> {
        let first = self.folders.len();
        for item in items {
            match item.node.kind() {
                NodeKind::Directory => self.folders.push(item),
                NodeKind::File => self.files.push(item),
                NodeKind::Symlink | NodeKind::Fifo | NodeKind::Socket => self.entries.push(item),
                NodeKind::CharacterDevice | NodeKind::BlockDevice => self.failures.push(Failure::new(
                    Exit::Failure,
                    format!("{}: a device, which is not copied", escape(&item.path)),
                )),
                NodeKind::Unspecified => self.failures.push(Failure::new(
                    Exit::Failure,
                    format!("{}: of a kind that this version does not know", escape(&item.path)),
                )),
            }
        }
        (first..self.folders.len()).collect()
    }
}

fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && name.len() <= 255 && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in [&b""[..], b".", b"..", b"a/b", b"/etc", b"a\0b", &[b'n'; 256]] {
            assert!(!is_name(name), "{name:?}");
        }
        for name in [&b"..."[..], b"a", b"\xff\n", &[b'n'; 255]] {
            assert!(is_name(name), "{name:?}");
        }
    }
}
