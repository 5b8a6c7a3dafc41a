//! Messages of the catalog ⇄ our types.
//!
//! What is wrong with one operation is that operation's refusal; the others of its request are done.

use bytes::Bytes;
use prost::Message;
use swarm_proto::{Fault, InodeNumber, RequestId, convert as fields, v1};
use tonic::Status;

use crate::catalog::writer::{
    Acknowledged, Content, Done, MAX_OPERATIONS, Mutated, Others, Publish, Request, Submitted, WriteFile,
};
use crate::namespace::plan::{
    At, Attributes, ExtendedChange, IfExists, Inherit, Operation, Ownership, RenameMode, SetId, Special,
};
use crate::namespace::{Body, Change, Device, DeviceKind, ExtendedName, MODE_BITS, Name, Node, Refusal};

/// Bytes of inodes in one reply; those that do not fit are left out. Only inodes with large attributes get there.
const MOST_REPLY_BYTES: usize = swarm_proto::MAX_MESSAGE_BYTES / 4 * 3;
/// Acknowledgements of one file: as many as the largest message has room for.
const MOST_ACKNOWLEDGED: usize = swarm_proto::MAX_MESSAGE_BYTES / 32;

pub(super) fn node(inode: InodeNumber, node: &Node) -> v1::Node {
    let content = node.content().unwrap_or_default();
    let kind = match node.body {
        Body::File(_) => v1::NodeKind::File,
        Body::Directory { .. } => v1::NodeKind::Directory,
        Body::Symlink { .. } => v1::NodeKind::Symlink,
        Body::Fifo => v1::NodeKind::Fifo,
        Body::Socket => v1::NodeKind::Socket,
        Body::Device(Device { kind: DeviceKind::Character, .. }) => v1::NodeKind::CharacterDevice,
        Body::Device(Device { kind: DeviceKind::Block, .. }) => v1::NodeKind::BlockDevice,
    };
    let extended = node.extended.iter().map(|(name, value)| v1::ExtendedAttribute {
        name: Bytes::copy_from_slice(name.as_bytes()),
        value: Bytes::copy_from_slice(value),
    });
    v1::Node {
        inode: inode.0,
        kind: kind.into(),
        mode: node.mode.into(),
        uid: node.uid,
        gid: node.gid,
        size: node.size(),
        links: node.links,
        modified_ns: node.modified_ns,
        changed_ns: node.changed_ns,
        created_ns: node.created_ns,
        manifest_digest: content.manifest.map(|digest| digest.to_wire()).unwrap_or_default(),
        link_target: match &node.body {
            Body::Symlink { target } => Bytes::copy_from_slice(target),
            _ => Bytes::new(),
        },
        version: content.version,
        accessed_ns: node.accessed_ns,
        allocated_bytes: content.allocated,
        device: match node.body {
            Body::Device(device) => device.number,
            _ => 0,
        },
        extended: extended.collect(),
    }
}

pub(super) fn change(change: &Change) -> v1::Change {
    v1::Change {
        inode: change.inode.0,
        name: change.name.as_ref().map(|name| Bytes::copy_from_slice(name.as_bytes())).unwrap_or_default(),
        content: change.content,
    }
}

pub(super) fn reply(mutated: Mutated) -> v1::MutateReply {
    let mut room = MOST_REPLY_BYTES;
    let mut others = mutated.others.into_iter();
    let result = |done: Done| {
        let (refusal, made) = match done {
            Ok(made) => (Refusal::new(Fault::Unspecified, ""), made),
            Err(mut refusal) => {
                let as_it_is = refusal.node.take().map(|as_it_is| *as_it_is);
                (refusal, as_it_is)
            }
        };
        let mut wire = |(inode, made): &(InodeNumber, Node)| {
            let message = node(*inode, made);
            room = room.checked_sub(message.encoded_len())?;
            Some(message)
        };
        v1::OperationResult {
            fault: refusal.fault.into(),
            message: refusal.message,
            node: made.as_ref().and_then(&mut wire),
            others: others.next().iter().flatten().filter_map(wire).collect(),
        }
    };
    let results = mutated.results.into_iter().map(result).collect();
    v1::MutateReply { revision: mutated.revision.0, results }
}

pub(super) fn request(message: v1::MutateRequest) -> Result<Request, Status> {
    let id = RequestId::try_from(&message.request_id[..]);
    let id = id.map_err(|error| Status::invalid_argument(format!("request_id: {error}")))?;
    fields::within("operations", message.operations.len() as u64, 1, MAX_OPERATIONS as u64)?;
    let mut hasher = blake3::Hasher::new();
    let mut encoded = Vec::new();
    for operation in &message.operations {
        encoded.clear();
        // A Vec grows: there is always room.
        if operation.encode_length_delimited(&mut encoded).is_ok() {
            hasher.update(&encoded);
        }
    }
    let others = if message.with_others { Others::Tell } else { Others::Omit };
    let operations = message.operations.into_iter().map(operation).collect();
    Ok(Request { id, fingerprint: *hasher.finalize().as_bytes(), others, operations })
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Fault::Invalid, message)
}

fn operation(message: v1::Operation) -> Result<Submitted, Refusal> {
    use v1::operation::Operation as Wire;
    let Some(operation) = message.operation else { return Err(invalid("an operation of an unknown kind")) };
    let plain = match operation {
        Wire::PublishFile(publish) => return publish_file(publish).map(Submitted::Publish),
        Wire::MakeDirectory(make) => Operation::MakeDirectory(at(make.parent, &make.name)?, ownership(make.ownership)?),
        Wire::MakeSymlink(make) => {
            Operation::MakeSymlink(at(make.parent, &make.name)?, ownership(make.ownership)?, own(&make.target))
        }
        Wire::MakeSpecial(make) => {
            let device = |kind| Special::Device(Device { kind, number: make.device });
            let special = match (make.kind(), make.device) {
                (v1::NodeKind::Fifo, 0) => Special::Fifo,
                (v1::NodeKind::Socket, 0) => Special::Socket,
                (v1::NodeKind::CharacterDevice, _) => device(DeviceKind::Character),
                (v1::NodeKind::BlockDevice, _) => device(DeviceKind::Block),
                (v1::NodeKind::Fifo | v1::NodeKind::Socket, _) => {
                    return Err(invalid("a fifo or a socket with the number of a device"));
                }
                _ => return Err(invalid("a special file is a fifo, a socket or a device")),
            };
            Operation::MakeSpecial(at(make.parent, &make.name)?, ownership(make.ownership)?, special)
        }
        Wire::SetAttributes(set) => {
            let mode = set.mode.map(mode).transpose()?;
            let v1::SetAttributes { uid, gid, modified_ns, accessed_ns, clear_set_id, .. } = set;
            let set_id = set_id(clear_set_id);
            let attributes = Attributes { mode, uid, gid, modified_ns, accessed_ns, set_id };
            Operation::SetAttributes(InodeNumber(set.inode), attributes)
        }
        Wire::Unlink(unlink) => Operation::Unlink(at(unlink.parent, &unlink.name)?),
        Wire::RemoveDirectory(remove) => Operation::RemoveDirectory(at(remove.parent, &remove.name)?),
        Wire::Rename(rename) => {
            let mode = match v1::RenameMode::try_from(rename.mode) {
                Ok(v1::RenameMode::Replace) => RenameMode::Replace,
                Ok(v1::RenameMode::NoReplace) => RenameMode::NoReplace,
                Ok(v1::RenameMode::Exchange) => RenameMode::Exchange,
                Err(_) => return Err(invalid("an unknown mode of rename")),
            };
            Operation::Rename(at(rename.parent, &rename.name)?, at(rename.new_parent, &rename.new_name)?, mode)
        }
        Wire::WriteFile(write) => return write_file(write).map(Submitted::Write),
        Wire::SetExtended(set) => {
            let value = set.value.as_ref().map(own);
            let change = match (v1::ExtendedMode::try_from(set.mode), value) {
                (Err(_), _) => return Err(invalid("an unknown mode of setting an attribute")),
                (Ok(_), None) => ExtendedChange::Remove,
                (Ok(v1::ExtendedMode::Set), Some(value)) => ExtendedChange::Set(value),
                (Ok(v1::ExtendedMode::Create), Some(value)) => ExtendedChange::Create(value),
                (Ok(v1::ExtendedMode::Replace), Some(value)) => ExtendedChange::Replace(value),
            };
            Operation::SetExtended(InodeNumber(set.inode), ExtendedName::new(&set.name)?, change)
        }
        Wire::Link(link) => Operation::Link(InodeNumber(link.inode), at(link.new_parent, &link.new_name)?),
    };
    Ok(Submitted::Plain(plain))
}

fn publish_file(publish: v1::PublishFile) -> Result<Publish, Refusal> {
    let if_exists = match v1::IfExists::try_from(publish.if_exists) {
        Ok(v1::IfExists::Fail) => IfExists::Fail,
        Ok(v1::IfExists::Replace) => IfExists::Replace,
        Ok(v1::IfExists::ReplaceVersion) => IfExists::ReplaceVersion(publish.base_version),
        Err(_) => return Err(invalid("if_exists is unknown")),
    };
    let content = match publish.content {
        None => Content::Empty,
        Some(v1::publish_file::Content::Manifest(bytes)) => Content::Inline(bytes),
        Some(v1::publish_file::Content::ManifestDigest(digest)) => {
            Content::Known(fields::manifest_digest("manifest_digest", &digest).map_err(field)?)
        }
    };
    Ok(Publish {
        at: at(publish.parent, &publish.name)?,
        ownership: ownership(publish.ownership)?,
        size: publish.size,
        content,
        if_exists,
        acknowledged: acknowledged(&publish.acknowledged)?,
    })
}

fn write_file(write: v1::WriteFile) -> Result<WriteFile, Refusal> {
    let content = match write.content {
        None => Content::Empty,
        Some(v1::write_file::Content::Manifest(bytes)) => Content::Inline(bytes),
        Some(v1::write_file::Content::ManifestDigest(digest)) => {
            Content::Known(fields::manifest_digest("manifest_digest", &digest).map_err(field)?)
        }
    };
    Ok(WriteFile {
        inode: InodeNumber(write.inode),
        base_version: write.base_version,
        size: write.size,
        content,
        modified_ns: write.modified_ns,
        changed_ns: write.changed_ns,
        accessed_ns: write.accessed_ns,
        set_id: set_id(write.clear_set_id),
        acknowledged: acknowledged(&write.acknowledged)?,
    })
}

fn acknowledged(messages: &[v1::Acknowledged]) -> Result<Acknowledged, Refusal> {
    let mut acknowledged = Vec::with_capacity(messages.len().min(64));
    for ack in messages {
        let peer = fields::peer_id("acknowledged.peer_id", &ack.peer_id).map_err(field)?;
        let segments = fields::segment_ids("acknowledged.segment_ids", &ack.segment_ids, MOST_ACKNOWLEDGED);
        acknowledged.push((peer, segments.map_err(field)?));
    }
    Ok(acknowledged)
}

fn set_id(clear: bool) -> SetId {
    if clear { SetId::Clear } else { SetId::Keep }
}

fn at(parent: u64, name: &[u8]) -> Result<At, Refusal> {
    Ok(At { parent: InodeNumber(parent), name: Name::new(name)? })
}

fn ownership(message: Option<v1::Ownership>) -> Result<Ownership, Refusal> {
    let message = message.ok_or_else(|| invalid("ownership is missing"))?;
    let v1::Ownership { uid, gid, modified_ns, inherit, .. } = message;
    let inherit = if inherit { Inherit::Group } else { Inherit::Nothing };
    Ok(Ownership { mode: mode(message.mode)?, uid, gid, modified_ns, inherit })
}

fn mode(mode: u32) -> Result<u16, Refusal> {
    match u16::try_from(mode) {
        Ok(bits) if mode <= MODE_BITS => Ok(bits),
        _ => Err(invalid(format!("mode {mode:o} has bits above 07777"))),
    }
}

/// A copy, so that a small thing does not keep its whole message.
fn own(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn field(error: fields::ConvertError) -> Refusal {
    invalid(error.to_string())
}
