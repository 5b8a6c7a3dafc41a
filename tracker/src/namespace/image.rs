//! **PURE.** All names, in memory, and how a committed write changes them.
//!
//! Not checked here: what a commit wrote was planned on an image that it fits. A record that does not fit
//! (a damaged store) leaves the image odd, never panics, and [`Image::check`] tells.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;

use swarm_proto::{InodeNumber, ManifestDigest};

use super::{Body, Name, NameWrite, Node};

/// What a watcher needs to know of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The inode that changed, or the directory whose entry did.
    pub inode: InodeNumber,
    /// The entry that was made, removed or replaced. None: the inode itself changed.
    pub name: Option<Name>,
    /// The inode has a new content.
    pub content: bool,
}

/// How much there is that has a name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files, each once however many links it has.
    pub files: u64,
    /// Directories, the root among them.
    pub directories: u64,
    /// Inodes of all kinds.
    pub inodes: u64,
    /// Sum of the files' sizes.
    pub logical_bytes: u64,
}

/// All names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    nodes: HashMap<InodeNumber, Node>,
    entries: HashMap<InodeNumber, BTreeMap<Name, InodeNumber>>,
    /// How many files name each manifest, orphans among them.
    live: HashMap<ManifestDigest, u32>,
    /// Files that have lost their last name.
    orphans: HashSet<InodeNumber>,
    counts: Counts,
}

impl Image {
    /// An inode.
    pub fn node(&self, inode: InodeNumber) -> Option<&Node> {
        self.nodes.get(&inode)
    }

    /// What a directory's entry names.
    pub fn entry(&self, directory: InodeNumber, name: &[u8]) -> Option<InodeNumber> {
        self.entries.get(&directory)?.get(name).copied()
    }

    /// Entries of a directory.
    pub fn len_of(&self, directory: InodeNumber) -> usize {
        self.entries.get(&directory).map_or(0, BTreeMap::len)
    }

    /// Entries after `after` (None: from the first), in the order of their bytes.
    pub fn list(
        &self,
        directory: InodeNumber,
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = (&Name, InodeNumber)> + use<'_> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let entries = self.entries.get(&directory).map(|entries| entries.range::<[u8], _>((from, Bound::Unbounded)));
        entries.into_iter().flatten().map(|(name, inode)| (name, *inode))
    }

    /// All inodes, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = (InodeNumber, &Node)> {
        self.nodes.iter().map(|(inode, node)| (*inode, node))
    }

    /// Whether a file names this manifest.
    pub fn is_live(&self, manifest: &ManifestDigest) -> bool {
        self.live.contains_key(manifest)
    }

    /// Manifests that files name, each once, in no order.
    pub fn live_manifests(&self) -> impl ExactSizeIterator<Item = &ManifestDigest> {
        self.live.keys()
    }

    /// The same, without those that only orphans name.
    ///
    /// Cost: O(manifests + orphans).
    pub fn named_manifests(&self) -> impl Iterator<Item = &ManifestDigest> {
        let mut orphaned: HashMap<ManifestDigest, u32> = HashMap::new();
        let contents = self.orphans.iter().filter_map(|inode| self.nodes.get(inode)?.content()?.manifest);
        contents.for_each(|manifest| *orphaned.entry(manifest).or_default() += 1);
        self.live.iter().filter(move |(manifest, files)| orphaned.get(*manifest) != Some(*files)).map(|(live, _)| live)
    }

    /// Files that have lost their last name, in no order.
    pub fn orphans(&self) -> impl ExactSizeIterator<Item = InodeNumber> {
        self.orphans.iter().copied()
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Apply one committed write.
    ///
    /// Shape: returns the manifest that no file names any more through it, if any.
    pub fn apply(&mut self, write: NameWrite, changes: &mut Vec<Change>) -> Option<ManifestDigest> {
        match write {
            NameWrite::Entry(directory, name, inode) => {
                changes.push(Change { inode: directory, name: Some(name.clone()), content: false });
                match inode {
                    Some(inode) => {
                        self.entries.entry(directory).or_default().insert(name, inode);
                    }
                    None => self.remove_entry(directory, &name),
                }
                None
            }
            NameWrite::Node(inode, node) => self.apply_node(inode, node, changes),
        }
    }

    fn remove_entry(&mut self, directory: InodeNumber, name: &Name) {
        if let Some(entries) = self.entries.get_mut(&directory) {
            entries.remove(name);
            if entries.is_empty() {
                self.entries.remove(&directory);
            }
        }
    }

    fn apply_node(
        &mut self,
        inode: InodeNumber,
        node: Option<Node>,
        changes: &mut Vec<Change>,
    ) -> Option<ManifestDigest> {
        let added = node.as_ref().and_then(Node::content);
        if let Some(manifest) = added.and_then(|content| content.manifest) {
            *self.live.entry(manifest).or_default() += 1;
        }
        match &node {
            Some(node) if node.is_orphan() => drop(self.orphans.insert(inode)),
            Some(node) => {
                self.counts.inodes += 1;
                self.counts.files += u64::from(added.is_some());
                self.counts.directories += u64::from(node.is_directory());
                self.counts.logical_bytes = self.counts.logical_bytes.saturating_add(node_bytes(node));
            }
            None => {}
        }
        let is_orphan = node.as_ref().is_some_and(Node::is_orphan);
        let old = match node {
            Some(node) => self.nodes.insert(inode, node),
            None => self.nodes.remove(&inode),
        };
        let removed = old.as_ref().and_then(Node::content);
        let content = added.map(|content| content.version) != removed.map(|content| content.version);
        changes.push(Change { inode, name: None, content });
        let old = old?;
        if !old.is_orphan() {
            self.counts.inodes -= 1;
            self.counts.files -= u64::from(removed.is_some());
            self.counts.directories -= u64::from(old.is_directory());
            self.counts.logical_bytes = self.counts.logical_bytes.saturating_sub(node_bytes(&old));
        } else if !is_orphan {
            self.orphans.remove(&inode);
        }
        let manifest = removed?.manifest?;
        let references = self.live.get_mut(&manifest)?;
        *references -= 1;
        if *references > 0 {
            return None;
        }
        self.live.remove(&manifest);
        Some(manifest)
    }

    /// Whether the invariants hold; says the first thing that does not.
    ///
    /// Cost: O(inodes + entries).
    pub fn check(&self) -> Result<(), String> {
        match self.nodes.get(&InodeNumber::ROOT).map(|root| &root.body) {
            Some(Body::Directory { parent }) if *parent == InodeNumber::ROOT => {}
            _ => return Err("inode 1 is not a root directory".into()),
        }
        let mut named: HashMap<InodeNumber, u32> = HashMap::new();
        let mut subdirectories: HashMap<InodeNumber, u32> = HashMap::new();
        for (directory, entries) in &self.entries {
            if !self.nodes.get(directory).is_some_and(Node::is_directory) {
                return Err(format!("inode {directory} has entries but is no directory"));
            }
            for (name, inode) in entries {
                let Some(node) = self.nodes.get(inode) else {
                    return Err(format!("{name:?} in directory {directory} names inode {inode}, which is gone"));
                };
                *named.entry(*inode).or_default() += 1;
                if let Body::Directory { parent } = node.body {
                    *subdirectories.entry(*directory).or_default() += 1;
                    if parent != *directory {
                        return Err(format!("directory {inode} lies in {directory} but says {parent}"));
                    }
                }
            }
        }
        for (inode, node) in &self.nodes {
            let names = named.get(inode).copied().unwrap_or(0);
            let links = match node.is_directory() {
                true => 2 + subdirectories.get(inode).copied().unwrap_or(0),
                false => names,
            };
            if node.links != links {
                return Err(format!("inode {inode} says {} links and has {links}", node.links));
            }
            let want = match (*inode == InodeNumber::ROOT, node.is_directory()) {
                (true, _) => names == 0,
                (false, true) => names == 1,
                // A file without a name is an orphan.
                (false, false) => names > 0 || node.is_orphan(),
            };
            if !want {
                return Err(format!("inode {inode} has {names} names"));
            }
        }
        self.check_tree()
    }

    /// Every directory reaches the root. With one parent each, those that do not are on a loop.
    fn check_tree(&self) -> Result<(), String> {
        let mut reached = 0u64;
        let mut left = vec![InodeNumber::ROOT];
        while let Some(directory) = left.pop() {
            reached += 1;
            let below = self.list(directory, None).map(|(_, inode)| inode);
            left.extend(below.filter(|inode| self.nodes.get(inode).is_some_and(Node::is_directory)));
        }
        match reached == self.counts.directories {
            true => Ok(()),
            false => Err(format!("{reached} of {} directories reach the root", self.counts.directories)),
        }
    }
}

fn node_bytes(node: &Node) -> u64 {
    node.content().map_or(0, |content| content.size)
}
