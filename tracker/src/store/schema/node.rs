//! **PURE.** An inode as its record has it.
//!
//! ```text
//! v2  kind:u8 mode:u16 uid:u32 gid:u32 links:u32 accessed:i64 modified:i64 changed:i64 created:i64
//!     attributes:u16 then so many of name:blob value:blob in the order of their names; then by kind
//!       1 file               size:u64 allocated:u64 version:u64 and, unless it is empty, digest:[u8;32]
//!       2 directory          parent:u64
//!       3 symlink            the target
//!       4 fifo, 5 socket     nothing
//!       6 character device, 7 block device    number:u64
//! v1  the same without accessed, attributes, allocated and devices
//! ```
//! v1 is read, never written: such a file was last read when it was modified, and has no holes.

use bytes::BufMut;
use swarm_proto::{InodeNumber, ManifestDigest};

use super::codec::{Fields, Result, SchemaError, put_blob};
use crate::namespace::{Body, Content, Device, DeviceKind, Extended, ExtendedName, MAX_TARGET_BYTES, MODE_BITS, Node};

/// The layout that is written.
pub(super) const NODE_LAYOUT: u8 = 2;
/// The first one.
pub(super) const OLD_NODE_LAYOUT: u8 = 1;

pub(super) fn put_node(out: &mut Vec<u8>, node: &Node) {
    out.push(match node.body {
        Body::File(_) => 1,
        Body::Directory { .. } => 2,
        Body::Symlink { .. } => 3,
        Body::Fifo => 4,
        Body::Socket => 5,
        Body::Device(Device { kind: DeviceKind::Character, .. }) => 6,
        Body::Device(Device { kind: DeviceKind::Block, .. }) => 7,
    });
    out.put_u16_le(node.mode);
    out.put_u32_le(node.uid);
    out.put_u32_le(node.gid);
    out.put_u32_le(node.links);
    out.put_i64_le(node.accessed_ns);
    out.put_i64_le(node.modified_ns);
    out.put_i64_le(node.changed_ns);
    out.put_i64_le(node.created_ns);
    out.put_u16_le(u16::try_from(node.extended.iter().count()).expect("names have 6 bytes, and all together 8 KiB"));
    for (name, value) in node.extended.iter() {
        put_blob(out, name.as_bytes());
        put_blob(out, value);
    }
    match &node.body {
        Body::File(content) => {
            out.put_u64_le(content.size);
            out.put_u64_le(content.allocated);
            out.put_u64_le(content.version);
            out.extend_from_slice(content.manifest.as_ref().map_or(&[][..], |digest| digest.as_bytes()));
        }
        Body::Directory { parent } => out.put_u64_le(parent.0),
        Body::Symlink { target } => out.extend_from_slice(target),
        Body::Fifo | Body::Socket => {}
        Body::Device(device) => out.put_u64_le(device.number),
    }
}

/// Read one that was written in `layout`; all bytes that are left are its own.
pub(super) fn take_node(rest: &mut Fields<'_>, layout: u8) -> Result<Node> {
    let is_old = match layout {
        OLD_NODE_LAYOUT => true,
        NODE_LAYOUT => false,
        other => return Err(SchemaError::Layout(other)),
    };
    let kind = rest.u8()?;
    let (mode, uid, gid, links) = (rest.u16()?, rest.u32()?, rest.u32()?, rest.u32()?);
    if u32::from(mode) > MODE_BITS {
        return Err(SchemaError::Malformed("a mode above 07777"));
    }
    let accessed_ns = if is_old { None } else { Some(rest.i64()?) };
    let (modified_ns, changed_ns, created_ns) = (rest.i64()?, rest.i64()?, rest.i64()?);
    let extended = if is_old { Extended::default() } else { take_extended(rest)? };
    let body = match kind {
        1 => Body::File(take_content(rest, is_old)?),
        2 => Body::Directory { parent: InodeNumber(rest.u64()?) },
        3 => {
            let target = rest.take(rest.0.len())?;
            if target.is_empty() || target.len() > MAX_TARGET_BYTES || target.contains(&0) {
                return Err(SchemaError::Malformed("a symlink's target breaks the rules"));
            }
            Body::Symlink { target: target.into() }
        }
        4 => Body::Fifo,
        5 => Body::Socket,
        6 if !is_old => Body::Device(Device { kind: DeviceKind::Character, number: rest.u64()? }),
        7 if !is_old => Body::Device(Device { kind: DeviceKind::Block, number: rest.u64()? }),
        _ => return Err(SchemaError::Malformed("an inode of an unknown kind")),
    };
    if !extended.is_empty() && !matches!(body, Body::File(_) | Body::Directory { .. }) {
        return Err(SchemaError::Malformed("attributes of what can have none"));
    }
    let accessed_ns = accessed_ns.unwrap_or(modified_ns);
    Ok(Node { mode, uid, gid, links, accessed_ns, modified_ns, changed_ns, created_ns, extended, body })
}

fn take_content(rest: &mut Fields<'_>, is_old: bool) -> Result<Content> {
    let size = rest.u64()?;
    let allocated = if is_old { size } else { rest.u64()? };
    let version = rest.u64()?;
    let manifest = match rest.is_empty() {
        true => None,
        false => Some(ManifestDigest::new(rest.array()?)),
    };
    if manifest.is_none() != (size == 0) {
        return Err(SchemaError::Malformed("a file's size does not fit its manifest"));
    }
    if allocated > size {
        return Err(SchemaError::Malformed("more of a file is allocated than it has"));
    }
    Ok(Content { size, allocated, version, manifest })
}

fn take_extended(rest: &mut Fields<'_>) -> Result<Extended> {
    const BROKEN: SchemaError = SchemaError::Malformed("an attribute breaks the rules");
    let count = rest.u16()?;
    let mut extended = Extended::default();
    let mut last: Option<ExtendedName> = None;
    for _ in 0..count {
        let name = ExtendedName::new(rest.blob()?).map_err(|_| BROKEN)?;
        if last.is_some_and(|last| last >= name) {
            return Err(BROKEN);
        }
        extended.set(&name, rest.blob()?).map_err(|_| BROKEN)?;
        last = Some(name);
    }
    Ok(extended)
}
