//! **PURE.** link(2), and the attributes of an inode.

use swarm_proto::{Fault, InodeNumber};

use super::{At, Attributes, Plan};
use crate::namespace::{MAX_LINKS, Refusal};

/// Errors: EPERM for a directory; EEXIST; EMLINK; ESTALE if the inode is gone.
pub(super) fn link(plan: &mut Plan<'_, '_>, inode: InodeNumber, at: &At) -> Result<InodeNumber, Refusal> {
    let node = plan.node(inode)?;
    let (is_directory, links) = (node.is_directory(), node.links);
    plan.free(at)?;
    if is_directory {
        return Err(Refusal::new(Fault::Permission, "a directory has one name only"));
    }
    if links >= MAX_LINKS {
        return Err(Refusal::new(Fault::TooManyLinks, "the file has too many names"));
    }
    plan.change(inode, |node| node.links += 1)?;
    plan.set_entry(at, Some(inode), 0)?;
    Ok(inode)
}

/// Errors: ESTALE if the inode is gone.
pub(super) fn set_attributes(
    plan: &mut Plan<'_, '_>,
    inode: InodeNumber,
    attributes: &Attributes,
) -> Result<InodeNumber, Refusal> {
    plan.change(inode, |node| {
        node.mode = attributes.mode.unwrap_or(node.mode);
        node.uid = attributes.uid.unwrap_or(node.uid);
        node.gid = attributes.gid.unwrap_or(node.gid);
        node.modified_ns = attributes.modified_ns.unwrap_or(node.modified_ns);
    })?;
    Ok(inode)
}
