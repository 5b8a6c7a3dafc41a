//! **PURE.** A new content for a file that is open somewhere, with or without a name.

use swarm_proto::{Fault, InodeNumber};

use super::{FileWrite, Fresh, Plan};
use crate::namespace::{Body, Refusal};

/// Errors: EINVAL if the size is not the manifest's, or for what is no file; EISDIR; ESTALE if the inode is gone, or if
/// it has another version than the one that is to be replaced: then the refusal has the inode as it is.
pub(super) fn file(
    plan: &mut Plan<'_, '_>,
    inode: InodeNumber,
    write: &FileWrite,
    fresh: &mut Fresh,
) -> Result<InodeNumber, Refusal> {
    let content = write.content.checked()?;
    let node = plan.node(inode)?;
    let old = match node.content() {
        Some(old) => old,
        None if node.is_directory() => {
            return Err(Refusal::new(Fault::IsDirectory, format!("inode {inode} is a directory")));
        }
        None => return Err(Refusal::new(Fault::Invalid, format!("inode {inode} is not a file"))),
    };
    if old.version != write.base_version {
        let refusal = Refusal::new(Fault::Stale, format!("inode {inode} has another version by now"));
        return Err(refusal.with_node(inode, node.clone()));
    }
    // The writer's clock: what it shows to its own programs meanwhile must not change when it is told here.
    let changed_ns = node.changed_ns.max(write.changed_ns);
    let version = fresh.take()?.max(old.version.saturating_add(1));
    plan.change(inode, |node| {
        write.set_id.apply(node);
        node.modified_ns = write.modified_ns;
        node.changed_ns = changed_ns;
        node.accessed_ns = write.accessed_ns.unwrap_or(node.accessed_ns);
        node.body = Body::File(content(version));
    })?;
    Ok(inode)
}
