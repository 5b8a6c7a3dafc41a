//! `swarmfs mv`: rename and move within the swarm; nothing is copied.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use swarm_proto::v1::operation::Operation;
use swarm_proto::v1::{NodeKind, Rename, RenameMode};

use super::connect::{Tool, tracker_failure};
use super::exit::{Exit, Failure, Outcome};
use super::name::escape;
use super::problems::Problems;
use super::target::{Present, Source, destinations, folder_of, last_name};
use super::tree::LastLink;

/// Rename and move files and folders within the swarm.
#[derive(Debug, Args)]
#[command(after_long_help = "\
SRC and PATH relate as in `mv`: into PATH if it is a folder, else PATH is the new name. Nothing is copied:
a folder moves in one step, whatever is in it.")]
pub struct Mv {
    /// What to move
    #[arg(value_name = "SRC", required = true)]
    sources: Vec<OsString>,
    /// Where to
    #[arg(value_name = "PATH")]
    target: OsString,
    /// Do not replace a file that is there
    #[arg(short, long)]
    no_clobber: bool,
}

impl Mv {
    /// Run it.
    pub async fn run(self, tool: &Tool) -> Outcome {
        let connection = tool.connect()?;
        let problems = Problems::default();
        let target = self.target.as_bytes();
        let present = match connection.find(target, LastLink::Follow).await? {
            None => Present::Nothing,
            Some(node) if node.kind() == NodeKind::Directory => Present::Folder,
            Some(_) => Present::Other,
        };
        let mut sources = Vec::new();
        for source in &self.sources {
            let path = source.as_bytes();
            let node = connection.need(path, LastLink::Itself).await?;
            sources.push(Source { path: path.to_vec(), folder: node.kind() == NodeKind::Directory });
        }
        for (source, destination) in sources.iter().zip(destinations(&sources, target, present)?) {
            let (Some(name), Some(new_name)) = (last_name(&source.path), last_name(&destination)) else {
                return Err(Failure::usage(format!("{}: cannot be moved", escape(&source.path))));
            };
            let rename = Rename {
                parent: connection.need_folder(folder_of(&source.path)).await?.inode,
                name: name.to_vec().into(),
                new_parent: connection.need_folder(folder_of(&destination)).await?.inode,
                new_name: new_name.to_vec().into(),
                mode: match self.no_clobber {
                    true => RenameMode::NoReplace.into(),
                    false => RenameMode::Replace.into(),
                },
            };
            let doing = format!("move {} to {}", escape(&source.path), escape(&destination));
            match connection.tracker.mutate_one(Operation::Rename(rename)).await {
                Ok(_) => {}
                Err(error) => match tracker_failure(doing, &error) {
                    failure if failure.exit == Exit::Unreachable => return Err(failure),
                    failure => problems.add(failure),
                },
            }
        }
        problems.conclude("files and folders were not moved")
    }
}
