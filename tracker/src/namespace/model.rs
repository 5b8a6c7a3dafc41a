//! Random operations, against a small naive model that counts instead of remembering.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use swarm_proto::{Fault, InodeNumber, ManifestDigest};

use super::plan::{
    At, Attributes, Described, FileWrite, Fresh, IfExists, Inherit, NewContent, Operation, Ownership, RenameMode,
    SetId, Special, plan, reclaim,
};
use super::{Body, Content, Draft, Image, Name, NameWrite, Node};

/// A write to an open file.
const WRITE: u8 = 11;
/// No operation: after its group an orphan is reclaimed.
const RECLAIM: u8 = 12;

const NAMES: [&str; 3] = ["a", "b", "\u{fffd}\n"];

/// An operation by indices, so that it means something on any history.
#[derive(Debug, Clone, Copy)]
struct Step {
    kind: u8,
    from: (usize, usize),
    to: (usize, usize),
    mode: u8,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    File(u64),
    Directory(BTreeMap<&'static str, usize>),
    Other,
    Reclaimed,
}

/// Nodes are never removed: one without a name is gone, but for a file until it is reclaimed.
#[derive(Default)]
struct Model {
    nodes: Vec<Kind>,
}

type Done = Result<Option<usize>, Fault>;

impl Model {
    fn entries(&self, directory: usize) -> Result<&BTreeMap<&'static str, usize>, Fault> {
        match &self.nodes[directory] {
            _ if !self.exists(directory) => Err(Fault::Stale),
            Kind::Directory(entries) => Ok(entries),
            _ => Err(Fault::NotDirectory),
        }
    }

    fn names(&self, node: usize) -> u32 {
        let named = |kind: &Kind| match kind {
            Kind::Directory(entries) => entries.values().map(|named| u32::from(*named == node)).sum(),
            _ => 0,
        };
        self.nodes.iter().map(named).sum()
    }

    fn exists(&self, node: usize) -> bool {
        node == 0 || self.names(node) > 0 || matches!(self.nodes[node], Kind::File(_))
    }

    fn is_orphan(&self, node: usize) -> bool {
        self.exists(node) && node != 0 && self.names(node) == 0
    }

    fn is_directory(&self, node: usize) -> bool {
        matches!(self.nodes[node], Kind::Directory(_))
    }

    fn links(&self, node: usize) -> u32 {
        match &self.nodes[node] {
            Kind::Directory(entries) => {
                2 + entries.values().map(|below| u32::from(self.is_directory(*below))).sum::<u32>()
            }
            _ => self.names(node),
        }
    }

    fn below(&self, node: usize, ancestor: usize) -> bool {
        node == ancestor
            || (0..self.nodes.len()).any(|above| {
                let names_it = matches!(&self.nodes[above], Kind::Directory(e) if e.values().any(|n| *n == node));
                names_it && self.below(above, ancestor)
            })
    }

    fn set(&mut self, (directory, name): (usize, &'static str), node: Option<usize>) {
        let Kind::Directory(entries) = &mut self.nodes[directory] else { panic!("checked before") };
        match node {
            Some(node) => entries.insert(name, node),
            None => entries.remove(name),
        };
    }

    fn make(&mut self, at: (usize, &'static str), kind: Kind) -> Done {
        if self.entries(at.0)?.contains_key(at.1) {
            return Err(Fault::Exists);
        }
        self.nodes.push(kind);
        let made = self.nodes.len() - 1;
        self.set(at, Some(made));
        Ok(Some(made))
    }

    fn find(&self, at: (usize, &str)) -> Result<usize, Fault> {
        self.entries(at.0)?.get(at.1).copied().ok_or(Fault::NotFound)
    }

    fn run(&mut self, step: Step) -> Done {
        let (from, to) = ((step.from.0, NAMES[step.from.1]), (step.to.0, NAMES[step.to.1]));
        match step.kind {
            0 | 1 => self.make(from, Kind::Directory(BTreeMap::new())),
            2 => self.make(from, Kind::Other),
            3 => {
                let size = u64::from(step.mode);
                match (self.entries(from.0)?.get(from.1).copied(), step.mode % 3) {
                    (None, 2) => Err(Fault::Stale),
                    (None, _) => self.make(from, Kind::File(size)),
                    (Some(_), 0) => Err(Fault::Exists),
                    (Some(node), mode) => match (&mut self.nodes[node], mode) {
                        (Kind::File(old), _) => {
                            *old = size;
                            Ok(Some(node))
                        }
                        (_, 2) => Err(Fault::Stale),
                        (Kind::Directory(_), _) => Err(Fault::IsDirectory),
                        (Kind::Other | Kind::Reclaimed, _) => Err(Fault::Exists),
                    },
                }
            }
            4 => match self.exists(step.to.0) {
                true => Ok(Some(step.to.0)),
                false => Err(Fault::Stale),
            },
            5 => {
                if self.is_directory(self.find(from)?) {
                    return Err(Fault::IsDirectory);
                }
                self.set(from, None);
                Ok(None)
            }
            6 => {
                match &self.nodes[self.find(from)?] {
                    Kind::Directory(entries) if entries.is_empty() => {}
                    Kind::Directory(_) => return Err(Fault::NotEmpty),
                    _ => return Err(Fault::NotDirectory),
                }
                self.set(from, None);
                Ok(None)
            }
            7 => {
                if !self.exists(step.to.0) {
                    return Err(Fault::Stale);
                }
                if self.entries(from.0)?.contains_key(from.1) {
                    return Err(Fault::Exists);
                }
                if self.is_directory(step.to.0) {
                    return Err(Fault::Permission);
                }
                if self.is_orphan(step.to.0) {
                    return Err(Fault::NotFound);
                }
                self.set(from, Some(step.to.0));
                Ok(Some(step.to.0))
            }
            WRITE => {
                let exists = self.exists(step.to.0);
                match &mut self.nodes[step.to.0] {
                    _ if !exists => Err(Fault::Stale),
                    Kind::Directory(_) => Err(Fault::IsDirectory),
                    Kind::File(_) if step.mode.is_multiple_of(4) => Err(Fault::Stale),
                    Kind::File(size) => {
                        *size = u64::from(step.mode);
                        Ok(Some(step.to.0))
                    }
                    Kind::Other | Kind::Reclaimed => Err(Fault::Invalid),
                }
            }
            _ => self.rename(from, to, step.mode % 3),
        }
    }

    fn rename(&mut self, from: (usize, &'static str), to: (usize, &'static str), mode: u8) -> Done {
        self.entries(to.0)?;
        let moved = self.find(from)?;
        let target = self.entries(to.0)?.get(to.1).copied();
        match (mode, target) {
            (1, Some(_)) => return Err(Fault::Exists),
            (2, None) => return Err(Fault::NotFound),
            _ => {}
        }
        if self.is_directory(moved) && from.0 != to.0 && self.below(to.0, moved) {
            return Err(Fault::Invalid);
        }
        let Some(target) = target else {
            self.set(from, None);
            self.set(to, Some(moved));
            return Ok(Some(moved));
        };
        if mode == 2 && self.is_directory(target) && from.0 != to.0 && self.below(from.0, target) {
            return Err(Fault::Invalid);
        }
        if target == moved {
            return Ok(Some(moved));
        }
        if mode == 2 {
            self.set(from, Some(target));
            self.set(to, Some(moved));
            return Ok(Some(moved));
        }
        match (self.is_directory(moved), &self.nodes[target]) {
            (true, Kind::Directory(entries)) if !entries.is_empty() => return Err(Fault::NotEmpty),
            (true, Kind::Directory(_)) => {}
            (true, _) => return Err(Fault::NotDirectory),
            (false, Kind::Directory(_)) if self.below(from.0, target) => return Err(Fault::NotEmpty),
            (false, Kind::Directory(_)) => return Err(Fault::IsDirectory),
            (false, _) => {}
        }
        self.set(from, None);
        self.set(to, Some(moved));
        Ok(Some(moved))
    }
}

fn digest(size: u64) -> Option<ManifestDigest> {
    let bytes: [u8; 32] = [u8::try_from(size % 7 + 1).unwrap(); 32];
    (size > 0).then(|| ManifestDigest::new(bytes))
}

/// Half of it holes.
fn content(size: u64) -> NewContent {
    let manifest = digest(size).map(|digest| Described { digest, file_bytes: size, data_bytes: size / 2 });
    NewContent { size, manifest }
}

fn operation(step: Step, inodes: &[InodeNumber], image: &Image) -> Operation {
    let at =
        |(node, name): (usize, usize)| At { parent: inodes[node], name: Name::new(NAMES[name].as_bytes()).unwrap() };
    let ownership = Ownership { mode: 0o640, uid: 1, gid: 2, modified_ns: 3, inherit: Inherit::Nothing };
    match step.kind {
        0 | 1 => Operation::MakeDirectory(at(step.from), ownership),
        2 if step.mode.is_multiple_of(2) => Operation::MakeSymlink(at(step.from), ownership, "target".into()),
        2 => Operation::MakeSpecial(at(step.from), ownership, Special::Fifo),
        3 => {
            let size = u64::from(step.mode);
            let version = image
                .entry(inodes[step.from.0], NAMES[step.from.1].as_bytes())
                .and_then(|inode| image.node(inode)?.content())
                .map_or(0, |content| content.version);
            let if_exists =
                [IfExists::Fail, IfExists::Replace, IfExists::ReplaceVersion(version)][usize::from(step.mode % 3)];
            Operation::PublishFile(at(step.from), ownership, content(size), if_exists)
        }
        4 => {
            let attributes = Attributes { mode: Some(u16::from(step.mode)), ..Attributes::default() };
            Operation::SetAttributes(inodes[step.to.0], attributes)
        }
        5 => Operation::Unlink(at(step.from)),
        6 => Operation::RemoveDirectory(at(step.from)),
        7 => Operation::Link(inodes[step.to.0], at(step.from)),
        WRITE => {
            let size = u64::from(step.mode);
            let inode = inodes[step.to.0];
            let version = image.node(inode).and_then(Node::content).map_or(0, |content| content.version);
            let write = FileWrite {
                base_version: version + u64::from(step.mode.is_multiple_of(4)),
                content: content(size),
                modified_ns: 5,
                changed_ns: 6,
                accessed_ns: None,
                set_id: SetId::Keep,
            };
            Operation::WriteFile(inode, write)
        }
        _ => {
            let mode = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange][usize::from(step.mode % 3)];
            Operation::Rename(at(step.from), at(step.to), mode)
        }
    }
}

pub(crate) fn empty_image() -> Image {
    let root = Node {
        mode: 0o755,
        uid: 0,
        gid: 0,
        links: 2,
        accessed_ns: 0,
        modified_ns: 0,
        changed_ns: 0,
        created_ns: 0,
        extended: super::Extended::default(),
        body: Body::Directory { parent: InodeNumber::ROOT },
    };
    let mut image = Image::default();
    image.apply(NameWrite::Node(InodeNumber::ROOT, Some(root)), &mut Vec::new());
    image
}

/// What the image holds, written again from nothing.
fn rebuilt(image: &Image) -> Image {
    let mut again = Image::default();
    for (inode, node) in image.nodes() {
        again.apply(NameWrite::Node(inode, Some(node.clone())), &mut Vec::new());
        for (name, below) in image.list(inode, None) {
            again.apply(NameWrite::Entry(inode, name.clone(), Some(below)), &mut Vec::new());
        }
    }
    again
}

fn compare(model: &Model, image: &Image, inodes: &[InodeNumber]) {
    image.check().unwrap();
    let (mut named, mut orphans) = (0, 0);
    for (node, inode) in inodes.iter().enumerate() {
        let found = image.node(*inode);
        assert_eq!(found.is_some(), model.exists(node), "node {node}");
        let Some(found) = found else { continue };
        *(if model.is_orphan(node) { &mut orphans } else { &mut named }) += 1;
        assert_eq!(found.is_orphan(), model.is_orphan(node), "node {node}");
        assert_eq!(found.links, model.links(node), "links of node {node}");
        match &model.nodes[node] {
            Kind::Directory(entries) => {
                let want: HashMap<&[u8], InodeNumber> =
                    entries.iter().map(|(name, node)| (name.as_bytes(), inodes[*node])).collect();
                let got: HashMap<&[u8], InodeNumber> =
                    image.list(*inode, None).map(|(name, inode)| (name.as_bytes(), inode)).collect();
                assert_eq!(got, want);
            }
            Kind::File(size) => {
                let content = found.content().unwrap();
                assert_eq!((content.size, content.allocated, content.manifest), (*size, size / 2, digest(*size)));
            }
            Kind::Other => assert!(matches!(found.body, Body::Symlink { .. } | Body::Fifo)),
            Kind::Reclaimed => panic!("node {node} was reclaimed"),
        }
    }
    assert_eq!((image.counts().inodes, image.orphans().len() as u64), (named, orphans));
    assert_eq!(&rebuilt(image), image, "counts and live manifests are those of the records");
}

fn step() -> impl Strategy<Value = Step> {
    (0u8..13, (0usize..12, 0usize..3), (0usize..12, 0usize..3), any::<u8>()).prop_map(|(kind, from, to, mode)| Step {
        kind,
        from,
        to,
        mode,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_history_does_what_the_model_does(steps in prop::collection::vec(step(), 1..60), group in 1usize..6) {
        let mut model = Model { nodes: vec![Kind::Directory(BTreeMap::new())] };
        let mut image = empty_image();
        let mut inodes = vec![InodeNumber::ROOT];
        let mut fresh = Fresh::new(2..10_000);
        let mut versions: HashMap<u64, InodeNumber> = HashMap::new();
        for group in steps.chunks(group) {
            let mut draft = Draft::new(&image);
            // What the draft shows must be what the image will be: planned on a copy that is applied at once.
            let mut ahead = image.clone();
            let mut reclaimed = Vec::new();
            for step in group {
                let pick = |(node, name): (usize, usize)| (node % inodes.len(), name);
                let step = Step { from: pick(step.from), to: pick(step.to), ..*step };
                if step.kind == RECLAIM {
                    reclaimed.push(step.to.0);
                    continue;
                }
                let operation = operation(step, &inodes, &ahead);
                let planned = plan(&draft, &operation, 7, &mut fresh);
                let want = model.run(step);
                match (&planned, &want) {
                    (Err(refusal), Err(fault)) => prop_assert_eq!(refusal.fault, *fault, "{:?}", operation),
                    (Ok(planned), Ok(node)) => {
                        prop_assert_eq!(planned.node.is_some(), node.is_some());
                        if let (Some((inode, _)), Some(node)) = (&planned.node, node) {
                            if *node == inodes.len() {
                                prop_assert!(!inodes.contains(inode), "a number is never used again");
                                inodes.push(*inode);
                            }
                            prop_assert_eq!(inodes[*node], *inode);
                        }
                    }
                    _ => prop_assert!(false, "{:?}: planned {:?}, the model {:?}", operation, planned, want),
                }
                if let Ok(planned) = planned {
                    draft.absorb(&planned);
                    for write in planned.writes {
                        if let NameWrite::Node(inode, Some(Node { body: Body::File(Content { version, .. }), .. })) = &write {
                            let first = *versions.entry(*version).or_insert(*inode);
                            prop_assert_eq!(first, *inode, "no two inodes share a version");
                        }
                        ahead.apply(write, &mut Vec::new());
                    }
                }
            }
            for write in draft.finish().writes {
                image.apply(write, &mut Vec::new());
            }
            prop_assert_eq!(&image, &ahead);
            let numbers: Vec<InodeNumber> = reclaimed.iter().map(|node| inodes[*node]).collect();
            for write in reclaim(&image, &numbers).writes {
                image.apply(write, &mut Vec::new());
            }
            for node in reclaimed {
                if model.is_orphan(node) {
                    model.nodes[node] = Kind::Reclaimed;
                }
            }
            compare(&model, &image, &inodes);
        }
    }
}
