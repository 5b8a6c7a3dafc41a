//! How the fake catalog is changed: as the tracker's, as far as the tests look.

use std::sync::atomic::Ordering;

use super::*;
use swarm_proto::v1::operation::Operation;
use swarm_seeder::tracker_client::Refusal;

/// What a change comes to: the inode made or changed, others, and names that changed.
pub(super) type Done = Result<(Option<u64>, Vec<u64>, Vec<(u64, Bytes)>), Fault>;

impl FakeSwarm {
    pub(super) fn carry_out(&self, operation: Operation) -> Answer<'_, Changed> {
        let late = self.echoes_late.load(Ordering::SeqCst);
        let lost = self.lose_answers.load(Ordering::SeqCst);
        let is_file = matches!(operation, Operation::PublishFile(_));
        let is_gone = is_file && self.lose_segments.swap(false, Ordering::SeqCst);
        self.ask(move |state| {
            let changed = match operation {
                Operation::WriteFile(write) => state.write_file(write, late),
                _ if is_gone => state.conclude(Err(Fault::SendAgain), late),
                other => {
                    let done = state.carry_out(other);
                    state.conclude(done, late)
                }
            };
            if lost { Err(unreachable()) } else { Ok(changed) }
        })
    }

    /// Push what was held back.
    pub(crate) fn push_echoes(&self) {
        let mut state = self.state.lock();
        for reply in std::mem::take(&mut state.held) {
            state.watchers.retain(|watcher| watcher.unbounded_send(Ok(reply.clone())).is_ok());
        }
    }
}

impl State {
    pub(super) fn conclude(&mut self, done: Done, late: bool) -> Changed {
        let (node, others, names) = match done {
            Ok(done) => done,
            Err(fault) => {
                // The answer is remembered, as the tracker does.
                self.revision += 1;
                let refused = Some(Refusal { fault, message: format!("{fault:?}") });
                return Changed { revision: Revision(self.revision), refused, node: None, others: Vec::new() };
            }
        };
        self.revision += 1;
        let names = names.into_iter().map(|(inode, name)| v1::Change { inode, name, content: false });
        let inodes = others.iter().chain(&node).map(|inode| v1::Change { inode: *inode, ..v1::Change::default() });
        let reply = v1::WatchReply { revision: self.revision, changes: names.chain(inodes).collect(), reset: false };
        match late {
            true => self.held.push(reply),
            false => self.watchers.retain(|watcher| watcher.unbounded_send(Ok(reply.clone())).is_ok()),
        }
        let shown = |inode: u64| self.nodes.get(&inode).cloned();
        Changed {
            revision: Revision(self.revision),
            refused: None,
            node: node.and_then(shown),
            others: others.into_iter().filter_map(shown).collect(),
        }
    }

    fn carry_out(&mut self, operation: Operation) -> Done {
        match operation {
            Operation::MakeDirectory(make) => self.make(make.parent, make.name, make.ownership, Kind::Directory),
            Operation::MakeSymlink(make) => {
                let done = self.make(make.parent, make.name, make.ownership, Kind::Symlink)?;
                self.made(&done).target = make.target;
                Ok(done)
            }
            Operation::MakeSpecial(make) => {
                let kind = match make.kind() {
                    v1::NodeKind::Fifo => Kind::Fifo,
                    v1::NodeKind::Socket => Kind::Socket,
                    v1::NodeKind::CharacterDevice => Kind::CharacterDevice,
                    _ => Kind::BlockDevice,
                };
                let done = self.make(make.parent, make.name, make.ownership, kind)?;
                self.made(&done).device = make.device;
                Ok(done)
            }
            Operation::PublishFile(publish) => {
                let done = self.make(publish.parent, publish.name, publish.ownership, Kind::File)?;
                if let Some(v1::publish_file::Content::Manifest(encoded)) = publish.content {
                    self.fill(done.0.unwrap(), &encoded);
                }
                Ok(done)
            }
            Operation::Unlink(at) => self.remove_name(at.parent, at.name, false),
            Operation::RemoveDirectory(at) => self.remove_name(at.parent, at.name, true),
            Operation::Rename(rename) => self.rename(&rename),
            Operation::Link(link) => {
                self.free(link.new_parent, &link.new_name)?;
                self.node_mut(link.inode)?.links += 1;
                let at = (link.new_parent, link.new_name);
                self.set_name(at.clone(), Some(link.inode));
                Ok((Some(link.inode), vec![at.0], vec![at]))
            }
            Operation::SetAttributes(set) => {
                let node = self.node_mut(set.inode)?;
                if set.clear_set_id {
                    node.mode &= if node.mode & 0o010 != 0 { 0o1777 } else { 0o3777 };
                }
                node.mode = set.mode.map_or(node.mode, |mode| u16::try_from(mode).unwrap());
                node.uid = set.uid.unwrap_or(node.uid);
                node.gid = set.gid.unwrap_or(node.gid);
                node.modified_ns = set.modified_ns.unwrap_or(node.modified_ns);
                node.accessed_ns = set.accessed_ns.unwrap_or(node.accessed_ns);
                Ok((Some(set.inode), vec![], vec![]))
            }
            Operation::SetExtended(set) => self.set_extended(set),
            Operation::WriteFile(_) => Err(Fault::Permission),
        }
    }

    fn set_extended(&mut self, set: v1::SetExtended) -> Done {
        let mode = set.mode();
        let extended = &mut self.node_mut(set.inode)?.extended;
        let place = extended.binary_search_by(|(name, _)| name.cmp(&set.name));
        match (place, set.value, mode) {
            (Ok(_), Some(_), v1::ExtendedMode::Create) => return Err(Fault::Exists),
            (Err(_), Some(_), v1::ExtendedMode::Replace) | (Err(_), None, _) => return Err(Fault::NoAttribute),
            (Ok(at), Some(value), _) => extended[at].1 = value,
            (Err(at), Some(value), _) => extended.insert(at, (set.name, value)),
            (Ok(at), None, _) => drop(extended.remove(at)),
        }
        Ok((Some(set.inode), vec![], vec![]))
    }

    fn made(&mut self, done: &(Option<u64>, Vec<u64>, Vec<(u64, Bytes)>)) -> &mut Node {
        self.nodes.get_mut(&done.0.unwrap()).unwrap()
    }

    fn node_mut(&mut self, inode: u64) -> Result<&mut Node, Fault> {
        self.nodes.get_mut(&inode).ok_or(Fault::Stale)
    }

    fn free(&mut self, parent: u64, name: &Bytes) -> Result<(), Fault> {
        if name.is_empty() {
            return Err(Fault::Invalid);
        }
        let kind = self.node_mut(parent)?.kind;
        match kind {
            Kind::Directory if self.names.contains_key(&(parent, name.clone())) => Err(Fault::Exists),
            Kind::Directory => Ok(()),
            _ => Err(Fault::NotDirectory),
        }
    }

    fn find(&mut self, parent: u64, name: &Bytes) -> Result<u64, Fault> {
        match self.free(parent, name) {
            Err(Fault::Exists) => Ok(self.names[&(parent, name.clone())]),
            Err(other) => Err(other),
            Ok(()) => Err(Fault::NotFound),
        }
    }

    fn is_directory(&self, inode: u64) -> bool {
        self.nodes[&inode].kind == Kind::Directory
    }

    fn set_name(&mut self, at: (u64, Bytes), inode: Option<u64>) {
        let old = match inode {
            Some(inode) => self.names.insert(at.clone(), inode),
            None => self.names.remove(&at),
        };
        let gained = |inode: Option<u64>| inode.map_or(0, |inode| u32::from(self.is_directory(inode)));
        let (lost, won) = (gained(old), gained(inode));
        let directory = self.nodes.get_mut(&at.0).unwrap();
        directory.links = directory.links + won - lost;
        directory.modified_ns += 1;
    }

    fn make(&mut self, parent: u64, name: Bytes, ownership: Option<v1::Ownership>, kind: Kind) -> Done {
        self.free(parent, &name)?;
        let ownership = ownership.unwrap();
        let inode = self.next;
        self.next += 1;
        let made = Node {
            mode: u16::try_from(ownership.mode).unwrap(),
            uid: ownership.uid,
            gid: ownership.gid,
            links: if kind == Kind::Directory { 2 } else { 1 },
            modified_ns: ownership.modified_ns,
            target: Bytes::new(),
            ..node(inode, kind)
        };
        self.nodes.insert(inode, made);
        self.set_name((parent, name.clone()), Some(inode));
        Ok((Some(inode), vec![parent], vec![(parent, name)]))
    }

    fn drop_link(&mut self, inode: u64) {
        let node = self.nodes.get_mut(&inode).unwrap();
        node.links -= 1;
        if node.links == 0 || node.kind == Kind::Directory {
            self.nodes.remove(&inode);
        }
    }

    fn remove_name(&mut self, parent: u64, name: Bytes, directory: bool) -> Done {
        let inode = self.find(parent, &name)?;
        match (directory, self.is_directory(inode)) {
            (false, true) => return Err(Fault::IsDirectory),
            (true, false) => return Err(Fault::NotDirectory),
            (true, true) if self.names.keys().any(|(above, _)| *above == inode) => return Err(Fault::NotEmpty),
            _ => {}
        }
        self.set_name((parent, name.clone()), None);
        self.drop_link(inode);
        Ok((None, vec![parent, inode], vec![(parent, name)]))
    }

    fn rename(&mut self, rename: &v1::Rename) -> Done {
        let (from, to) = ((rename.parent, rename.name.clone()), (rename.new_parent, rename.new_name.clone()));
        let moved = self.find(from.0, &from.1)?;
        let target = match self.find(to.0, &to.1) {
            Ok(target) => Some(target),
            Err(Fault::NotFound) => None,
            Err(fault) => return Err(fault),
        };
        let names = vec![from.clone(), to.clone()];
        match (rename.mode(), target) {
            (v1::RenameMode::NoReplace, Some(_)) => return Err(Fault::Exists),
            (v1::RenameMode::Exchange, None) => return Err(Fault::NotFound),
            (v1::RenameMode::Exchange, Some(target)) => {
                self.set_name(from.clone(), Some(target));
                self.set_name(to.clone(), Some(moved));
                return Ok((Some(moved), vec![from.0, to.0, target], names));
            }
            _ if target == Some(moved) => return Ok((Some(moved), vec![], vec![])),
            _ => {}
        }
        self.set_name(from.clone(), None);
        self.set_name(to.clone(), Some(moved));
        if let Some(target) = target {
            self.drop_link(target);
        }
        Ok((Some(moved), [from.0, to.0].into_iter().chain(target).collect(), names))
    }
}
