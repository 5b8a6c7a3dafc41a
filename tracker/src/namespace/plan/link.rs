//! **PURE.** link(2).

use swarm_proto::{Fault, InodeNumber};

use super::{At, Plan};
use crate::namespace::{MAX_LINKS, Refusal};

/// Errors: EEXIST; EPERM for a directory; ENOENT for a file that has lost its last name; EMLINK; ESTALE if the inode is
/// gone.
pub(super) fn link(plan: &mut Plan<'_, '_>, inode: InodeNumber, at: &At) -> Result<InodeNumber, Refusal> {
    let node = plan.node(inode)?;
    let (is_directory, links) = (node.is_directory(), node.links);
    plan.free(at)?;
    if is_directory {
        return Err(Refusal::new(Fault::Permission, "a directory has one name only"));
    }
    if links == 0 {
        return Err(Refusal::new(Fault::NotFound, "the file has lost its last name"));
    }
    if links >= MAX_LINKS {
        return Err(Refusal::new(Fault::TooManyLinks, "the file has too many names"));
    }
    plan.change(inode, |node| node.links += 1)?;
    plan.set_entry(at, Some(inode), 0)?;
    Ok(inode)
}
