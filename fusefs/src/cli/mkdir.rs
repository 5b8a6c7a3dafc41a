//! `swarmfs mkdir`: make folders.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use swarm_proto::v1::operation::Operation;
use swarm_proto::v1::{MakeDirectory, Node, NodeKind, Ownership};
use swarm_proto::{Fault, InodeNumber};
use swarm_seeder::tracker_client::TrackerError;

use super::connect::{Connection, Tool, tracker_failure};
use super::exit::{Failure, Outcome};
use super::name::escape;
use super::problems::Problems;
use super::target::{folder_of, last_name};
use super::tree::{LastLink, not_folder};

/// Make folders.
#[derive(Debug, Args)]
pub struct Mkdir {
    /// Folders to make
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<OsString>,
    /// Make what lies above them too, and do not mind those that exist
    #[arg(short, long)]
    parents: bool,
    /// Permission bits, in octal
    #[arg(short, long, value_name = "MODE", default_value = "755", value_parser = octal)]
    mode: u32,
}

fn octal(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| "a mode is up to four octal digits, like 755".to_owned())
}

/// Ownership of what this process makes now.
pub(crate) fn own(mode: u32) -> Ownership {
    Ownership {
        mode,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        modified_ns: now_ns(),
        inherit: false,
    }
}

/// Now, as the catalog counts.
pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

impl Connection {
    /// Make one folder.
    pub(crate) async fn make_folder(&self, path: &[u8], ownership: Ownership) -> Outcome<Node> {
        let name = last_name(path).ok_or_else(|| Failure::usage(format!("{}: not a new name", escape(path))))?;
        let parent = self.need_folder(folder_of(path)).await?;
        self.make_folder_in(parent.inode, name, ownership).await.map_err(|error| tracker_failure(escape(path), &error))
    }

    async fn make_folder_in(&self, parent: u64, name: &[u8], ownership: Ownership) -> Result<Node, TrackerError> {
        let make = MakeDirectory { parent, name: name.to_vec().into(), ownership: Some(ownership) };
        Ok(self.tracker.mutate_one(Operation::MakeDirectory(make)).await?.unwrap_or_default())
    }

    /// The folder at `path`; it and what lies above it is made if it is not there.
    pub(crate) async fn make_folders(&self, path: &[u8], ownership: Ownership) -> Outcome<Node> {
        let mut missing: Vec<&[u8]> = Vec::new();
        let mut at = path;
        let mut here = loop {
            let there = self.find(if at.is_empty() { b"/" } else { at }, LastLink::Follow).await?;
            match there {
                Some(node) if node.kind() == NodeKind::Directory => break node,
                Some(_) => return Err(not_folder(at)),
                None => missing.push(last_name(at).ok_or_else(|| super::tree::not_found(at))?),
            }
            at = folder_of(at);
        };
        for name in missing.into_iter().rev() {
            here = match self.make_folder_in(here.inode, name, ownership).await {
                // Somebody else made it meanwhile.
                Err(TrackerError::Refused { fault: Fault::Exists, .. }) => {
                    let looked = self.tracker.lookup(InodeNumber(here.inode), name).await;
                    let found = looked.map_err(|error| tracker_failure(escape(path), &error))?;
                    found.filter(|node| node.kind() == NodeKind::Directory).ok_or_else(|| not_folder(path))?
                }
                made => made.map_err(|error| tracker_failure(escape(path), &error))?,
            };
        }
        Ok(here)
    }
}

impl Mkdir {
    /// Run it.
    pub async fn run(self, tool: &Tool) -> Outcome {
        let connection = tool.connect()?;
        let problems = Problems::default();
        for path in &self.paths {
            let made = match self.parents {
                true => connection.make_folders(path.as_bytes(), own(self.mode)).await,
                false => connection.make_folder(path.as_bytes(), own(self.mode)).await,
            };
            if let Err(failure) = made {
                problems.add(failure);
            }
        }
        problems.conclude("folders were not made")
    }
}
