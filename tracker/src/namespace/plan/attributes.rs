//! **PURE.** chmod(2), chown(2), utimensat(2), setxattr(2), removexattr(2).

use swarm_proto::{Fault, InodeNumber};

use super::{Attributes, ExtendedChange, Plan};
use crate::namespace::{Body, ExtendedName, Refusal};

/// Errors: ESTALE if the inode is gone.
pub(super) fn set(
    plan: &mut Plan<'_, '_>,
    inode: InodeNumber,
    attributes: &Attributes,
) -> Result<InodeNumber, Refusal> {
    plan.change(inode, |node| {
        attributes.set_id.apply(node);
        node.mode = attributes.mode.unwrap_or(node.mode);
        node.uid = attributes.uid.unwrap_or(node.uid);
        node.gid = attributes.gid.unwrap_or(node.gid);
        node.modified_ns = attributes.modified_ns.unwrap_or(node.modified_ns);
        node.accessed_ns = attributes.accessed_ns.unwrap_or(node.accessed_ns);
    })?;
    Ok(inode)
}

/// Errors: ESTALE if the inode is gone; EPERM if it is neither a file nor a directory; EEXIST, ENODATA as the change
/// says; ENOSPC if all attributes would be too large.
pub(super) fn set_extended(
    plan: &mut Plan<'_, '_>,
    inode: InodeNumber,
    name: &ExtendedName,
    change: &ExtendedChange,
) -> Result<InodeNumber, Refusal> {
    let node = plan.node(inode)?;
    if !matches!(node.body, Body::File(_) | Body::Directory { .. }) {
        return Err(Refusal::new(Fault::Permission, "only files and directories have attributes of users"));
    }
    let shown = name.as_bytes().escape_ascii();
    match (change, node.extended.contains(name)) {
        (ExtendedChange::Create(_), true) => {
            return Err(Refusal::new(Fault::Exists, format!("there is an attribute {shown}")));
        }
        (ExtendedChange::Replace(_) | ExtendedChange::Remove, false) => {
            return Err(Refusal::new(Fault::NoAttribute, format!("there is no attribute {shown}")));
        }
        _ => {}
    }
    let mut extended = node.extended.clone();
    match change {
        ExtendedChange::Set(value) | ExtendedChange::Create(value) | ExtendedChange::Replace(value) => {
            extended.set(name, value)?;
        }
        ExtendedChange::Remove => drop(extended.remove(name)),
    }
    plan.change(inode, |node| node.extended = extended)?;
    Ok(inode)
}
