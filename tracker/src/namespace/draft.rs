//! **PURE.** An image with writes that are planned but not committed yet.
//!
//! Operations of one commit are planned one after the other; each sees those before it.
//!
//! Invariant: applying [`Drafted::writes`] to the image gives what the draft shows; the conditions name
//! every record of the image that a plan relied on and that no earlier plan of the draft wrote.

use std::collections::{BTreeMap, HashMap, HashSet};

use swarm_proto::InodeNumber;

use super::{Image, Name, NameWrite, Node, Planned, Relied};

/// See the module.
pub struct Draft<'a> {
    image: &'a Image,
    nodes: HashMap<InodeNumber, Option<Node>>,
    entries: HashMap<InodeNumber, BTreeMap<Name, Option<InodeNumber>>>,
    /// How many entries a directory has more than in the image.
    grown: HashMap<InodeNumber, isize>,
    relied: HashSet<Relied>,
}

/// What a draft comes to.
#[derive(Debug, Default)]
pub struct Drafted {
    /// Must be as they were in the image.
    pub relied: Vec<Relied>,
    /// Each record at most once.
    pub writes: Vec<NameWrite>,
}

impl<'a> Draft<'a> {
    /// Nothing planned yet.
    pub fn new(image: &'a Image) -> Self {
        Self { image, nodes: HashMap::new(), entries: HashMap::new(), grown: HashMap::new(), relied: HashSet::new() }
    }

    /// An inode.
    pub fn node(&self, inode: InodeNumber) -> Option<&Node> {
        match self.nodes.get(&inode) {
            Some(planned) => planned.as_ref(),
            None => self.image.node(inode),
        }
    }

    /// What a directory's entry names.
    pub fn entry(&self, directory: InodeNumber, name: &Name) -> Option<InodeNumber> {
        match self.planned(directory, name) {
            Some(planned) => planned,
            None => self.image.entry(directory, name.as_bytes()),
        }
    }

    fn planned(&self, directory: InodeNumber, name: &Name) -> Option<Option<InodeNumber>> {
        self.entries.get(&directory)?.get(name).copied()
    }

    /// Whether a directory has no entries.
    pub fn is_empty(&self, directory: InodeNumber) -> bool {
        let grown = self.grown.get(&directory).copied().unwrap_or(0);
        self.image.len_of(directory).checked_add_signed(grown) == Some(0)
    }

    /// Take in what an operation was planned to do.
    pub fn absorb(&mut self, planned: &Planned) {
        for relied in &planned.relied {
            let ours = match relied {
                Relied::Node(inode) => self.nodes.contains_key(inode),
                Relied::Entry(directory, name) | Relied::NoEntry(directory, name) => {
                    self.planned(*directory, name).is_some()
                }
            };
            if !ours {
                self.relied.insert(relied.clone());
            }
        }
        for write in &planned.writes {
            match write {
                NameWrite::Node(inode, node) => {
                    self.nodes.insert(*inode, node.clone());
                }
                NameWrite::Entry(directory, name, inode) => {
                    let before = isize::from(self.entry(*directory, name).is_some());
                    *self.grown.entry(*directory).or_default() += isize::from(inode.is_some()) - before;
                    self.entries.entry(*directory).or_default().insert(name.clone(), *inode);
                }
            }
        }
    }

    /// All that was planned. Inodes that were made and removed again leave no trace.
    pub fn finish(self) -> Drafted {
        let image = self.image;
        let nodes = self.nodes.into_iter().filter(|(inode, node)| node.is_some() || image.node(*inode).is_some());
        let nodes = nodes.map(|(inode, node)| NameWrite::Node(inode, node));
        let entries = self.entries.into_iter().flat_map(|(directory, entries)| {
            let changed = entries
                .into_iter()
                .filter(move |(name, inode)| inode.is_some() || image.entry(directory, name.as_bytes()).is_some());
            changed.map(move |(name, inode)| NameWrite::Entry(directory, name, inode))
        });
        let mut writes: Vec<NameWrite> = nodes.chain(entries).collect();
        // In the order of their keys: the store is faster so, and equal histories write equal bytes.
        writes.sort_by(|a, b| order_of(a).cmp(&order_of(b)));
        Drafted { relied: self.relied.into_iter().collect(), writes }
    }
}

fn order_of(write: &NameWrite) -> (InodeNumber, Option<&Name>) {
    match write {
        NameWrite::Node(inode, _) => (*inode, None),
        NameWrite::Entry(directory, name, _) => (*directory, Some(name)),
    }
}
