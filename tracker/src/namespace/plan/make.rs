//! **PURE.** mkdir(2), symlink(2), mknod(2): something new under a name that must be free.

use bytes::Bytes;
use swarm_proto::{Fault, InodeNumber};

use super::{At, Fresh, Ownership, Plan, Special};
use crate::namespace::{Body, MAX_TARGET_BYTES, Refusal};

/// Errors: EEXIST; EMLINK if the parent is full of subdirectories.
pub(super) fn directory(
    plan: &mut Plan<'_, '_>,
    at: &At,
    ownership: &Ownership,
    fresh: &mut Fresh,
) -> Result<InodeNumber, Refusal> {
    plan.free(at)?;
    plan.room_for_subdirectory(at.parent)?;
    let inode = InodeNumber(fresh.take()?);
    plan.make(inode, at.parent, ownership, 2, Body::Directory { parent: at.parent })?;
    plan.set_entry(at, Some(inode), 1)?;
    Ok(inode)
}

/// Errors: ENOENT for an empty target, ENAMETOOLONG for one above 4,095 bytes, EEXIST.
pub(super) fn symlink(
    plan: &mut Plan<'_, '_>,
    at: &At,
    ownership: &Ownership,
    target: &Bytes,
    fresh: &mut Fresh,
) -> Result<InodeNumber, Refusal> {
    match &target[..] {
        b"" => return Err(Refusal::new(Fault::NotFound, "a symlink's target is empty")),
        long if long.len() > MAX_TARGET_BYTES => {
            let message = format!("a symlink's target of {} bytes, the limit is {MAX_TARGET_BYTES}", long.len());
            return Err(Refusal::new(Fault::NameTooLong, message));
        }
        with if with.contains(&0) => return Err(Refusal::new(Fault::Invalid, "a symlink's target contains NUL")),
        _ => {}
    }
    leaf(plan, at, ownership, Body::Symlink { target: target[..].into() }, fresh)
}

/// Errors: EEXIST.
pub(super) fn special(
    plan: &mut Plan<'_, '_>,
    at: &At,
    ownership: &Ownership,
    special: Special,
    fresh: &mut Fresh,
) -> Result<InodeNumber, Refusal> {
    let body = match special {
        Special::Fifo => Body::Fifo,
        Special::Socket => Body::Socket,
        Special::Device(device) => Body::Device(device),
    };
    leaf(plan, at, ownership, body, fresh)
}

fn leaf(
    plan: &mut Plan<'_, '_>,
    at: &At,
    ownership: &Ownership,
    body: Body,
    fresh: &mut Fresh,
) -> Result<InodeNumber, Refusal> {
    plan.free(at)?;
    let inode = InodeNumber(fresh.take()?);
    plan.make(inode, at.parent, ownership, 1, body)?;
    plan.set_entry(at, Some(inode), 0)?;
    Ok(inode)
}
