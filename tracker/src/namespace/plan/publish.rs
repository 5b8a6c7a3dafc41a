//! **PURE.** A file and its content, in one step.
//!
//! An existing file keeps its inode, mode, owner and links, as one that is truncated and written anew does.

use swarm_proto::{Fault, InodeNumber};

use super::{At, Fresh, IfExists, NewContent, Ownership, Plan};
use crate::namespace::{Body, Refusal};

/// Errors: EINVAL if the size is not the manifest's; EEXIST with [`IfExists::Fail`], or if the name is
/// something that has no content; EISDIR; ESTALE if the file is not the version that was to be replaced.
pub(super) fn file(
    plan: &mut Plan<'_, '_>,
    at: &At,
    ownership: &Ownership,
    content: NewContent,
    if_exists: IfExists,
    fresh: &mut Fresh,
) -> Result<InodeNumber, Refusal> {
    let content = content.checked()?;
    let found = plan.find(at)?;
    let Some(inode) = found else {
        if let IfExists::ReplaceVersion(_) = if_exists {
            return Err(Refusal::new(Fault::Stale, format!("{:?} is gone", at.name)));
        }
        let number = fresh.take()?;
        let inode = InodeNumber(number);
        plan.make(inode, at.parent, ownership, 1, Body::File(content(number)))?;
        plan.set_entry(at, Some(inode), 0)?;
        return Ok(inode);
    };
    let old = plan.node(inode)?;
    let refuse = |fault, problem: &str| Err(Refusal::new(fault, format!("{:?} {problem}", at.name)));
    let version = match (if_exists, old.content()) {
        (IfExists::Fail, _) => return refuse(Fault::Exists, "exists"),
        (IfExists::ReplaceVersion(_), None) => return refuse(Fault::Stale, "is no longer a file"),
        (IfExists::Replace, None) if old.is_directory() => return refuse(Fault::IsDirectory, "is a directory"),
        (IfExists::Replace, None) => return refuse(Fault::Exists, "exists and is not a file"),
        (IfExists::ReplaceVersion(base), Some(old)) if base != old.version => {
            return refuse(Fault::Stale, "has another version by now");
        }
        (_, Some(old)) => old.version,
    };
    // A fresh number, so that no two inodes share a version: a file that was renamed over the base is
    // never taken for it. `max`, as another replica may lease lower numbers later.
    let version = fresh.take()?.max(version.saturating_add(1));
    plan.change(inode, |node| {
        node.modified_ns = ownership.modified_ns;
        node.body = Body::File(content(version));
    })?;
    Ok(inode)
}
