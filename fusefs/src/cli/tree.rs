//! Paths in the catalog as a person writes them: `.`, `..` and links are followed here.
//!
//! Invariant: no path leads out of the folder that the tracker's address names.

use swarm_proto::v1::{Node, NodeKind};
use swarm_proto::{Fault, InodeNumber};
use swarm_seeder::tracker_client::TrackerError;

use super::connect::{Connection, tracker_failure};
use super::exit::{Exit, Failure, Outcome};
use super::name::escape;

/// Most links that one path may lead through.
const MOST_LINKS: u32 = 40;

/// What a last component that is a link means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LastLink {
    /// What it leads to.
    Follow,
    /// The link itself; unless a slash follows it.
    Itself,
}

impl Connection {
    /// What stands at `path`; none if nothing does.
    pub(crate) async fn find(&self, path: &[u8], last: LastLink) -> Outcome<Option<Node>> {
        let doing = escape(path);
        let plain = !path.split(|byte| *byte == b'/').any(|name| matches!(name, b"." | b".."));
        if plain {
            match self.tracker.resolve(&self.absolute(path)).await {
                Ok(Some(node)) if node.kind() != NodeKind::Symlink => return check_slash(path, node).map(Some),
                // A link at the end or on the way: walk.
                Ok(_) | Err(TrackerError::Refused { fault: Fault::NotDirectory | Fault::NotFound, .. }) => {}
                Err(error) => return Err(tracker_failure(doing, &error)),
            }
        }
        self.walk(path, last).await
    }

    /// What stands at `path`; an error if nothing does.
    pub(crate) async fn need(&self, path: &[u8], last: LastLink) -> Outcome<Node> {
        self.find(path, last).await?.ok_or_else(|| not_found(path))
    }

    /// The folder at `path`; an error if there is none.
    pub(crate) async fn need_folder(&self, path: &[u8]) -> Outcome<Node> {
        let node = self.need(if path.is_empty() { b"/" } else { path }, LastLink::Follow).await?;
        match node.kind() {
            NodeKind::Directory => Ok(node),
            _ => Err(not_folder(path)),
        }
    }

    async fn root(&self) -> Outcome<Node> {
        let root = self.absolute(b"/");
        let node = self.tracker.resolve(&root).await.map_err(|error| tracker_failure(escape(&root), &error))?;
        node.ok_or_else(|| not_found(&root))
    }

    async fn walk(&self, path: &[u8], last: LastLink) -> Outcome<Option<Node>> {
        let mut above: Vec<Node> = Vec::new();
        let mut here = self.root().await?;
        // Components still to go, the next one last.
        let mut rest = components(path);
        let slash = path.ends_with(b"/");
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if here.kind() != NodeKind::Directory {
                return Err(not_folder(path));
            }
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    here = above.pop().unwrap_or(here);
                    continue;
                }
                _ => {}
            }
            let looked = self.tracker.lookup(InodeNumber(here.inode), &name).await;
            let Some(node) = looked.map_err(|error| tracker_failure(escape(path), &error))? else { return Ok(None) };
            if node.kind() == NodeKind::Symlink && (!rest.is_empty() || last == LastLink::Follow || slash) {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Failure::new(Exit::Failure, format!("{}: too many links", escape(path))));
                }
                if node.link_target.starts_with(b"/") {
                    return Err(Failure::new(
                        Exit::NotFound,
                        format!("{}: its link to {} leads out of the swarm", escape(path), escape(&node.link_target)),
                    ));
                }
                rest.extend(components(&node.link_target));
                continue;
            }
            above.push(std::mem::replace(&mut here, node));
        }
        check_slash(path, here).map(Some)
    }
}

fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).rev().map(<[u8]>::to_vec).collect()
}

fn check_slash(path: &[u8], node: Node) -> Outcome<Node> {
    match path.ends_with(b"/") && node.kind() != NodeKind::Directory {
        true => Err(not_folder(path)),
        false => Ok(node),
    }
}

/// There is nothing at `path`.
pub(crate) fn not_found(path: &[u8]) -> Failure {
    Failure::new(Exit::NotFound, format!("{}: no such file or folder", escape(path)))
}

/// What is at `path` is no folder.
pub(crate) fn not_folder(path: &[u8]) -> Failure {
    Failure::new(Exit::Failure, format!("{}: not a folder", escape(path)))
}
