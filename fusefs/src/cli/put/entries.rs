//! The parts of a tree that are only entries: folders, symlinks, fifos, sockets, and the folders' times.

use std::os::unix::ffi::OsStrExt;

use futures::StreamExt;
use swarm_proto::v1::operation::Operation;
use swarm_proto::v1::{MakeDirectory, MakeSpecial, MakeSymlink, Node, NodeKind, SetAttributes, Unlink};
use swarm_proto::{Fault, InodeNumber};
use swarm_seeder::tracker_client::Refusal;

use super::files::Putting;
use super::scan::{Entry, Folder, Item, Plan};
use crate::cli::connect::tracker_failure;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::name::escape;

/// Operations of one mutation.
const MOST_OPERATIONS: usize = 1_000;
/// Lookups at a time.
const LOOKUPS: usize = 64;

impl Putting {
    /// Make what is missing of the folders, those above first; what fails is a problem, with all below.
    pub(super) async fn make_folders(&self, plan: &mut Plan) -> Outcome {
        let mut depths: Vec<usize> = Vec::with_capacity(plan.folders.len());
        for folder in &plan.folders {
            depths.push(folder.parent.map_or(0, |parent| depths[parent] + 1));
        }
        for depth in 1..=depths.iter().copied().max().unwrap_or_default() {
            let level: Vec<usize> = (0..plan.folders.len()).filter(|index| depths[*index] == depth).collect();
            let ready: Vec<(usize, u64)> = level
                .into_iter()
                .filter_map(|index| Some((index, plan.folders[plan.folders[index].parent?].inode?)))
                .collect();
            for some in ready.chunks(MOST_OPERATIONS) {
                self.make_level(&mut plan.folders, some).await?;
            }
        }
        Ok(())
    }

    async fn make_level(&self, folders: &mut [Folder], some: &[(usize, u64)]) -> Outcome {
        let make = |(index, parent): &(usize, u64)| {
            let folder = &folders[*index];
            Operation::MakeDirectory(MakeDirectory {
                parent: *parent,
                name: folder.name.clone().into(),
                ownership: Some(folder.ownership),
            })
        };
        let made = self.tracker.mutate(some.iter().map(make).collect()).await;
        let made = made.map_err(|error| tracker_failure("make folders", &error))?;
        let mut there: Vec<(usize, u64)> = Vec::new();
        for ((index, parent), outcome) in some.iter().zip(made) {
            let folder = &mut folders[*index];
            match outcome {
                Ok(node) => {
                    folder.inode = node.map(|node| node.inode);
                    folder.made = true;
                }
                Err(Refusal { fault: Fault::Exists, .. }) => there.push((*index, *parent)),
                Err(refusal) => self.problems.add(refused(&folder.source, &refusal)),
            }
        }
        let looks = there.into_iter().map(|(index, parent)| {
            let name = folders[index].name.clone();
            async move { (index, self.tracker.lookup(InodeNumber(parent), &name).await) }
        });
        let found: Vec<_> = futures::stream::iter(looks).buffer_unordered(LOOKUPS).collect().await;
        for (index, node) in found {
            let folder = &mut folders[index];
            match node.map_err(|error| tracker_failure("make folders", &error))? {
                Some(node) if node.kind() == NodeKind::Directory => folder.inode = Some(node.inode),
                _ => {
                    let shown = escape(folder.source.as_os_str().as_bytes());
                    let words = "a folder, and in the swarm something else has its name";
                    self.problems.add(Failure::new(Exit::Failure, format!("{shown}: {words}")));
                }
            }
        }
        Ok(())
    }

    /// Make symlinks, fifos and sockets; one that exists and differs is replaced, as by `cp`.
    pub(super) async fn make_entries(&self, entries: &[(Item, Entry)], inodes: &[Option<u64>]) -> Outcome {
        for some in entries.chunks(MOST_OPERATIONS / 2) {
            let make = |(item, entry): &(Item, Entry)| make(item, entry, inodes[item.parent].unwrap_or_default());
            let made = self.tracker.mutate(some.iter().map(make).collect()).await;
            let made = made.map_err(|error| tracker_failure("make links", &error))?;
            let mut again = Vec::new();
            for (both, outcome) in some.iter().zip(made) {
                match outcome {
                    Ok(_) => {}
                    Err(Refusal { fault: Fault::Exists, .. }) if !self.is_same(both, inodes).await? => again.push(both),
                    Err(Refusal { fault: Fault::Exists, .. }) => {}
                    Err(refusal) => self.problems.add(refused(&both.0.source, &refusal)),
                }
            }
            let unlink = |item: &Item| {
                let parent = inodes[item.parent].unwrap_or_default();
                Operation::Unlink(Unlink { parent, name: item.name.clone().into() })
            };
            let operations: Vec<Operation> = again.iter().flat_map(|both| [unlink(&both.0), make(both)]).collect();
            if operations.is_empty() {
                continue;
            }
            let made = self.tracker.mutate(operations).await;
            let made = made.map_err(|error| tracker_failure("replace links", &error))?;
            for ((item, _), outcomes) in again.iter().zip(made.chunks(2)) {
                if let Some(refusal) = outcomes.iter().find_map(|outcome| outcome.as_ref().err()) {
                    self.problems.add(refused(&item.source, refusal));
                }
            }
        }
        Ok(())
    }

    async fn is_same(&self, (item, entry): &(Item, Entry), inodes: &[Option<u64>]) -> Outcome<bool> {
        let parent = InodeNumber(inodes[item.parent].unwrap_or_default());
        let found = self.tracker.lookup(parent, &item.name).await;
        let found = found.map_err(|error| tracker_failure(escape(&item.name), &error))?;
        Ok(found.is_some_and(|node| same(entry, &node)))
    }

    /// Give the folders that were made the times of their sources, which their contents have changed.
    pub(super) async fn set_times(&self, plan: &Plan) -> Outcome {
        let made: Vec<&Folder> = plan.folders.iter().filter(|folder| folder.made && folder.inode.is_some()).collect();
        for some in made.chunks(MOST_OPERATIONS) {
            let set = |folder: &&Folder| {
                Operation::SetAttributes(SetAttributes {
                    inode: folder.inode.unwrap_or_default(),
                    modified_ns: Some(folder.ownership.modified_ns),
                    ..SetAttributes::default()
                })
            };
            let outcomes = self.tracker.mutate(some.iter().map(set).collect()).await;
            let outcomes = outcomes.map_err(|error| tracker_failure("set the times of folders", &error))?;
            for (folder, outcome) in some.iter().zip(outcomes) {
                if let Err(refusal) = outcome {
                    self.problems.add(refused(&folder.source, &refusal));
                }
            }
        }
        Ok(())
    }
}

fn make(item: &Item, entry: &Entry, parent: u64) -> Operation {
    let (name, ownership) = (item.name.clone().into(), Some(item.ownership));
    match entry {
        Entry::Symlink(target) => {
            Operation::MakeSymlink(MakeSymlink { parent, name, ownership, target: target.clone().into() })
        }
        Entry::Special(kind) => {
            Operation::MakeSpecial(MakeSpecial { parent, name, ownership, kind: (*kind).into(), device: 0 })
        }
    }
}

fn same(entry: &Entry, node: &Node) -> bool {
    match entry {
        Entry::Symlink(target) => node.kind() == NodeKind::Symlink && node.link_target == target[..],
        Entry::Special(kind) => node.kind() == *kind,
    }
}

fn refused(source: &std::path::Path, refusal: &Refusal) -> Failure {
    Failure::fault(escape(source.as_os_str().as_bytes()), refusal.fault, &refusal.message)
}
