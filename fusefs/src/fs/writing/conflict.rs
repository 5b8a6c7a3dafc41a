//! Conflict copies: what becomes of a version that lost against another mount's.

use std::sync::Arc;
use std::time::Instant;

use swarm_proto::v1::operation::Operation;
use swarm_proto::{Fault, InodeNumber, v1};
use swarm_seeder::store::AckLevel;

use super::resend::bearer;
use super::save::{Setback, deliver};
use super::{FileSystem, Writing, Written};
use crate::errno::{self, Errno};
use crate::fs::changing::now_ns;
use crate::fs::known::{Becomes, Touched};
use crate::write::unsaved::{Base, Save};

/// Names that are tried for a conflict copy.
const ATTEMPTS: u32 = 8;

impl FileSystem {
    /// Another mount's version stays; ours becomes a file beside it.
    pub(super) async fn lose(
        self: &Arc<Self>,
        writing: &Writing,
        written: &Written,
        save: &Save,
        winner: Base,
    ) -> Result<(), Setback> {
        let inode = written.unsaved.inode();
        self.write_conflict_copy(writing, inode, save).await?;
        written.unsaved.give_up(save.stamp, winner);
        self.show_anew(inode);
        Ok(())
    }

    async fn write_conflict_copy(
        self: &Arc<Self>,
        writing: &Writing,
        inode: InodeNumber,
        save: &Save,
    ) -> Result<(), Setback> {
        let (manifest, ids, _leases) = deliver(writing, save).await?;
        let manifest = Arc::new(manifest);
        let content = self.offer(&manifest).await.map_err(Setback::Failed)?.map(|content| match content {
            v1::write_file::Content::Manifest(encoded) => v1::publish_file::Content::Manifest(encoded),
            v1::write_file::Content::ManifestDigest(digest) => v1::publish_file::Content::ManifestDigest(digest),
        });
        let node = self.known.lock().node(inode, Instant::now()).map(|(node, _)| node);
        let node = node.ok_or(Setback::Failed(Errno::STALE))?;
        let (parent, name) = self.place_of(inode).unwrap_or((self.config.root, format!("inode-{inode}").into()));
        let stamp = now_ns() / 1_000_000;
        for number in 0..ATTEMPTS {
            let name = conflict_name(&name, &writing.host, stamp + i64::from(number));
            let publish = v1::PublishFile {
                parent: parent.0,
                name: name.clone().into(),
                ownership: Some(v1::Ownership {
                    mode: node.mode.into(),
                    uid: node.uid,
                    gid: node.gid,
                    modified_ns: save.modified_ns,
                    inherit: false,
                }),
                size: manifest.size(),
                if_exists: v1::IfExists::Fail.into(),
                base_version: 0,
                acknowledged: writing.outbox.acknowledged(&ids),
                content: content.clone(),
            };
            let touched = Touched { names: vec![(parent, name.clone().into())], inodes: Vec::new() };
            let answered = self.commit(writing, AckLevel::Close, touched, Operation::PublishFile(publish)).await;
            let answered = answered.map_err(Setback::Failed)?;
            match answered.refusal() {
                None => {
                    if let Some(node) = answered.node() {
                        self.owe(writing, node.inode, &manifest, &ids, |range| bearer(save, range));
                    }
                    let made = answered.node().map_or(Becomes::Unknown, Becomes::Names);
                    answered.conclude(&[made]);
                    let shown = String::from_utf8_lossy(&name).into_owned();
                    tracing::warn!(copy = shown, %inode, "two wrote one file: what was written here is beside it");
                    return Ok(());
                }
                Some(refusal) if refusal.fault == Fault::Exists => {}
                Some(refusal) if refusal.fault == Fault::SendAgain => {
                    writing.outbox.forget(&ids);
                    return Err(Setback::Again);
                }
                Some(refusal) => {
                    tracing::error!(%refusal, %inode, "write a conflict copy");
                    return Err(Setback::Failed(errno::of_fault(refusal.fault)));
                }
            }
        }
        Err(Setback::Failed(Errno::EXIST))
    }
}

pub(super) fn this_machine() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// `report.txt` → `report.txt.conflict-HOST-MILLISECONDS`, at most 255 bytes.
fn conflict_name(name: &[u8], host: &str, stamp: i64) -> Vec<u8> {
    const MOST: usize = 255;
    let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(32).collect();
    let tail = format!(".conflict-{host}-{stamp}");
    let mut kept = name.len().min(MOST - tail.len());
    if let Ok(text) = std::str::from_utf8(name) {
        while !text.is_char_boundary(kept) {
            kept -= 1;
        }
    }
    [&name[..kept], tail.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflict_copies_have_names_that_fit() {
        assert_eq!(conflict_name(b"a.txt", "desk.home", 7), b"a.txt.conflict-deskhome-7");
        assert_eq!(conflict_name(&[b'x'; 255], &"h".repeat(200), i64::MAX).len(), 255);
        assert_eq!(conflict_name("\u{e9}".repeat(127).as_bytes(), "ho", 7).len(), 254, "no half of a character");
    }
}
