//! **PURE.** renameat2(2).
//!
//! The checks stand in Linux's order, which shows when several fail at once.

use swarm_proto::{Fault, InodeNumber};

use super::{At, Plan, RenameMode};
use crate::namespace::{Body, Refusal};

/// Errors: ENOENT; EEXIST with no-replace; EINVAL into itself or below; ENOTDIR, EISDIR, ENOTEMPTY for a
/// target that cannot be replaced; EMLINK.
pub(super) fn rename(plan: &mut Plan<'_, '_>, from: &At, to: &At, mode: RenameMode) -> Result<InodeNumber, Refusal> {
    plan.directory(to.parent)?;
    let moved = plan.existing(from)?;
    let target = plan.find(to)?;
    match (mode, target) {
        (RenameMode::NoReplace, Some(_)) => {
            return Err(Refusal::new(Fault::Exists, format!("{:?} exists", to.name)));
        }
        (RenameMode::Exchange, None) => {
            return Err(Refusal::new(Fault::NotFound, format!("{:?} does not exist", to.name)));
        }
        _ => {}
    }
    let moves_directory = plan.node(moved)?.is_directory();
    if moves_directory && from.parent != to.parent {
        outside(plan, to.parent, moved)?;
    }
    let target_directory = match target {
        Some(target) => plan.node(target)?.is_directory(),
        None => false,
    };
    if mode == RenameMode::Exchange && target_directory && from.parent != to.parent {
        let target = target.expect("it was a directory just above");
        outside(plan, from.parent, target)?;
    }
    // Two names of one inode: nothing to do, and both stay. So POSIX wants it.
    if target == Some(moved) {
        return Ok(moved);
    }
    if mode == RenameMode::Exchange {
        let target = target.expect("exchange without a target was refused above");
        return exchange(plan, (from, moved, moves_directory), (to, target, target_directory));
    }
    if let Some(target) = target {
        let refuse = |fault, problem: &str| Err(Refusal::new(fault, format!("{:?} {problem}", to.name)));
        match (moves_directory, target_directory) {
            (true, false) => return refuse(Fault::NotDirectory, "is not a directory"),
            // Linux finds an ancestor of the source before it looks at kinds.
            (false, true) if from.parent != to.parent && outside(plan, from.parent, target).is_err() => {
                return refuse(Fault::NotEmpty, "is not empty");
            }
            (false, true) => return refuse(Fault::IsDirectory, "is a directory"),
            (true, true) if !plan.draft.is_empty(target) => return refuse(Fault::NotEmpty, "is not empty"),
            _ => plan.drop_link(target)?,
        }
    } else if moves_directory && from.parent != to.parent {
        plan.room_for_subdirectory(to.parent)?;
    }
    plan.set_entry(from, None, -i32::from(moves_directory))?;
    plan.set_entry(to, Some(moved), i32::from(moves_directory) - i32::from(target_directory))?;
    place(plan, moved, to.parent)?;
    Ok(moved)
}

type Side<'a> = (&'a At, InodeNumber, bool);

fn exchange(plan: &mut Plan<'_, '_>, from: Side<'_>, to: Side<'_>) -> Result<InodeNumber, Refusal> {
    let (from_at, moved, moved_directory) = from;
    let (to_at, target, target_directory) = to;
    let gained = i32::from(moved_directory) - i32::from(target_directory);
    if gained != 0 && from_at.parent != to_at.parent {
        plan.room_for_subdirectory(if gained > 0 { to_at.parent } else { from_at.parent })?;
    }
    plan.set_entry(from_at, Some(target), -gained)?;
    plan.set_entry(to_at, Some(moved), gained)?;
    place(plan, moved, to_at.parent)?;
    place(plan, target, from_at.parent)?;
    Ok(moved)
}

/// Tell an inode that it moved.
fn place(plan: &mut Plan<'_, '_>, inode: InodeNumber, into: InodeNumber) -> Result<(), Refusal> {
    plan.change(inode, |node| {
        if let Body::Directory { parent } = &mut node.body {
            *parent = into;
        }
    })
}

/// Refuse if `directory` is `moved` or lies below it. Relies on every directory up to the root, so that no
/// two renames can build a loop together.
fn outside(plan: &mut Plan<'_, '_>, directory: InodeNumber, moved: InodeNumber) -> Result<(), Refusal> {
    let mut at = directory;
    // No path is longer than there are directories; a loop in a damaged catalog ends here.
    for _ in 0..MAX_DEPTH {
        if at == moved {
            return Err(Refusal::new(Fault::Invalid, "a directory cannot be moved into itself"));
        }
        let Body::Directory { parent } = plan.node(at)?.body else { break };
        if parent == at {
            return Ok(());
        }
        at = parent;
    }
    Err(Refusal::new(Fault::Corrupt, format!("directory {directory} does not reach the root")))
}

const MAX_DEPTH: usize = 1 << 20;
