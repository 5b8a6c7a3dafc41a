//! **PURE.** unlink(2) and rmdir(2).

use swarm_proto::Fault;

use super::{At, Plan};
use crate::namespace::Refusal;

/// Errors: ENOENT; EISDIR, as Linux has it.
pub(super) fn unlink(plan: &mut Plan<'_, '_>, at: &At) -> Result<(), Refusal> {
    let inode = plan.existing(at)?;
    if plan.node(inode)?.is_directory() {
        return Err(Refusal::new(Fault::IsDirectory, format!("{:?} is a directory", at.name)));
    }
    plan.drop_link(inode)?;
    plan.set_entry(at, None, 0)
}

/// Errors: ENOENT, ENOTDIR, ENOTEMPTY.
pub(super) fn directory(plan: &mut Plan<'_, '_>, at: &At) -> Result<(), Refusal> {
    let inode = plan.existing(at)?;
    if !plan.node(inode)?.is_directory() {
        return Err(Refusal::new(Fault::NotDirectory, format!("{:?} is not a directory", at.name)));
    }
    // A new entry would change the directory's own record, so relying on that is relying on its emptiness.
    if !plan.draft.is_empty(inode) {
        return Err(Refusal::new(Fault::NotEmpty, format!("{:?} is not empty", at.name)));
    }
    plan.drop_link(inode)?;
    plan.set_entry(at, None, -1)
}
