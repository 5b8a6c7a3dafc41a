//! `swarmfs rm`: remove files and folders.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use futures::StreamExt;
use swarm_proto::v1::operation::Operation;
use swarm_proto::v1::{Node, NodeKind, RemoveDirectory, Unlink};
use swarm_proto::{Fault, InodeNumber};
use swarm_seeder::tracker_client::Refusal;

use super::connect::{Connection, Tool, tracker_failure};
use super::exit::{Exit, Failure, Outcome};
use super::name::escape;
use super::problems::Problems;
use super::target::{folder_of, join, last_name};
use super::tree::LastLink;

/// Operations of one mutation.
const MOST_OPERATIONS: usize = 1_000;
/// Folders that are listed at a time.
const LISTINGS: usize = 16;

/// Remove files and folders.
#[derive(Debug, Args)]
pub struct Rm {
    /// What to remove
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<OsString>,
    /// Folders too, with all that is in them
    #[arg(short, long)]
    recursive: bool,
    /// Do not mind what is not there
    #[arg(short, long)]
    force: bool,
}

/// A folder that shall go, after all that is in it.
struct Doomed {
    parent: u64,
    name: Vec<u8>,
    inode: u64,
    path: Vec<u8>,
}

impl Rm {
    /// Run it.
    pub async fn run(self, tool: &Tool) -> Outcome {
        let connection = tool.connect()?;
        let problems = Problems::default();
        for path in &self.paths {
            let removed = self.remove(&connection, path.as_bytes(), &problems).await;
            match removed {
                Err(failure) if failure.exit == Exit::NotFound && self.force => {}
                Err(failure) if failure.exit == Exit::Unreachable => return Err(failure),
                Err(failure) => problems.add(failure),
                Ok(()) => {}
            }
        }
        problems.conclude("files and folders were not removed")
    }

    async fn remove(&self, connection: &Connection, path: &[u8], problems: &Problems) -> Outcome {
        let Some(name) = last_name(path) else {
            return Err(Failure::usage(format!("{}: will not remove this folder itself", escape(path)))
                .hint("name what is in it, as `swarmfs ls` shows it"));
        };
        let parent = connection.need_folder(folder_of(path)).await?;
        let node = connection.need(path, LastLink::Itself).await?;
        if node.kind() == NodeKind::Directory {
            if !self.recursive {
                return Err(Failure::new(Exit::Failure, format!("{}: is a folder", escape(path)))
                    .hint("-r removes folders with all that is in them"));
            }
            let doomed = Doomed { parent: parent.inode, name: name.to_vec(), inode: node.inode, path: path.to_vec() };
            return self.remove_tree(connection, doomed, problems).await;
        }
        let unlink = unlink(parent.inode, name);
        self.mutate(connection, vec![(path.to_vec(), unlink)], problems).await
    }

    async fn remove_tree(&self, connection: &Connection, top: Doomed, problems: &Problems) -> Outcome {
        let mut levels: Vec<Vec<Doomed>> = vec![vec![top]];
        while let Some(level) = levels.last() {
            let listings = futures::stream::iter(level)
                .map(|folder| async move { (folder, connection.tracker.read_dir(InodeNumber(folder.inode)).await) });
            let listings: Vec<_> = listings.buffered(LISTINGS).collect().await;
            let (mut below, mut unlinks) = (Vec::new(), Vec::new());
            for (folder, entries) in listings {
                for entry in entries.map_err(|error| tracker_failure(escape(&folder.path), &error))? {
                    let path = join(&folder.path, &entry.name);
                    match entry.node {
                        Some(Node { inode, kind, .. }) if kind == i32::from(NodeKind::Directory) => {
                            below.push(Doomed { parent: folder.inode, name: entry.name.to_vec(), inode, path });
                        }
                        _ => unlinks.push((path, unlink(folder.inode, &entry.name))),
                    }
                }
            }
            self.mutate(connection, unlinks, problems).await?;
            if below.is_empty() {
                break;
            }
            levels.push(below);
        }
        for level in levels.into_iter().rev() {
            let removals = level.into_iter().map(|folder| {
                let operation = RemoveDirectory { parent: folder.parent, name: folder.name.into() };
                (folder.path, Operation::RemoveDirectory(operation))
            });
            self.mutate(connection, removals.collect(), problems).await?;
        }
        Ok(())
    }

    async fn mutate(
        &self,
        connection: &Connection,
        operations: Vec<(Vec<u8>, Operation)>,
        problems: &Problems,
    ) -> Outcome {
        for some in operations.chunks(MOST_OPERATIONS) {
            let outcomes = connection.tracker.mutate(some.iter().map(|(_, operation)| operation.clone()).collect());
            let outcomes = outcomes.await.map_err(|error| tracker_failure("remove", &error))?;
            for ((path, _), outcome) in some.iter().zip(outcomes) {
                match outcome {
                    Ok(_) => {}
                    // Somebody else removed it meanwhile, which is what was wanted.
                    Err(Refusal { fault: Fault::NotFound, .. }) => {}
                    Err(refusal) => problems.add(Failure::fault(escape(path), refusal.fault, &refusal.message)),
                }
            }
        }
        Ok(())
    }
}

fn unlink(parent: u64, name: &[u8]) -> Operation {
    Operation::Unlink(Unlink { parent, name: name.to_vec().into() })
}
