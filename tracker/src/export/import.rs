//! Reading the file: into a second tree, verified, and then live at once.
//!
//! Inodes get fresh numbers, as a number is never used twice and mounts may still know the old ones; also those of a
//! catalog that was lost, so the numbers of an import begin where no tracker can have come before.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use swarm_proto::{Fault, InodeNumber, ManifestDigest, PeerId, Revision, SwarmId};

use super::format::{Header, Item, ItemReader};
use crate::catalog::manifests::{KeepGuard, Leftover, Upload};
use crate::catalog::{Catalog, put, refusal_of};
use crate::namespace::{Body, Fresh, Image, NameWrite, Refusal};
use crate::store::schema::{Key, Record, SeederRecord, Swarm, TreeNumber};
use crate::store::{Commit, Condition, Outcome, StoreError, Write};

/// Most seeders of one file.
const MAX_SEEDERS: usize = 65_536;
/// Most inodes of one file: what a tracker can hold in memory at all.
const MAX_NODES: usize = 1 << 28;
/// Numbers leased, and records written, at once.
const AT_ONCE: u64 = 1024;

/// Numbers that no catalog uses up in a second, as a power of two; with the seconds since 1970 they stay below 2^53,
/// which every reader of JSON can tell apart.
const NUMBERS_A_SECOND: u32 = 20;

/// How long reading all names again may take.
const RELOAD: Duration = Duration::from_secs(300);

/// What an import came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// Files.
    pub files: u64,
    /// Directories, the root among them.
    pub directories: u64,
    /// Manifests.
    pub manifests: u64,
    /// From this revision on it is there.
    pub revision: Revision,
    /// The swarm that this is now.
    pub swarm: SwarmId,
    /// The swarm that was exported.
    pub of_file: SwarmId,
}

/// Whether an import may take the place of names that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// Only an empty catalog.
    Empty,
    /// Whatever there is.
    Anything,
}

/// An import that runs. One that is dropped leaves what it wrote to the sweep.
pub struct Import {
    catalog: Arc<Catalog>,
    tree: TreeNumber,
    reader: ItemReader,
    header: Option<Header>,
    seeders: Vec<(PeerId, SeederRecord)>,
    numbers: HashMap<InodeNumber, InodeNumber>,
    fresh: Fresh,
    image: Image,
    manifests: HashMap<ManifestDigest, u64>,
    upload: Option<(ManifestDigest, Upload)>,
    pending: Vec<Write>,
    _kept: KeepGuard,
    _alone: tokio::sync::OwnedMutexGuard<()>,
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Fault::Invalid, message)
}

fn store(error: StoreError) -> Refusal {
    refusal_of(&error)
}

impl Catalog {
    /// Begin an import; one runs at a time.
    pub async fn import(self: &Arc<Self>, replace: Replace) -> Result<Import, Refusal> {
        let alone = self
            .importing()
            .map_err(|_| Refusal::new(Fault::Stale, "another import runs: try again when it is done"))?;
        if replace == Replace::Empty {
            self.check_empty()?;
        }
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.numbers().skip_to(seconds << NUMBERS_A_SECOND).await.map_err(store)?;
        let kept = self.manifests().keep_all().await;
        let tree = TreeNumber(self.view().swarm.tree.0.wrapping_add(1));
        // What an earlier import left under this number, if the sweep has not been there yet.
        self.manifests().drop_tree(tree).await.map_err(store)?;
        let mark = put(Key::Import(tree), Record::Mark);
        self.store().commit(Commit { conditions: Vec::new(), writes: vec![mark] }).await.map_err(store)?;
        Ok(Import {
            catalog: self.clone(),
            tree,
            reader: ItemReader::default(),
            header: None,
            seeders: Vec::new(),
            numbers: HashMap::from([(InodeNumber::ROOT, InodeNumber::ROOT)]),
            fresh: Fresh::new(0..0),
            image: Image::default(),
            manifests: HashMap::new(),
            upload: None,
            pending: Vec::new(),
            _kept: kept,
            _alone: alone,
        })
    }

    fn check_empty(&self) -> Result<(), Refusal> {
        match self.view().image.counts().inodes {
            0 | 1 => Ok(()),
            more => {
                let message = format!("the catalog is not empty ({} inodes): say that it is to be replaced", more - 1);
                Err(Refusal::new(Fault::NotEmpty, message))
            }
        }
    }
}

impl Import {
    /// The next bytes of the file.
    pub async fn push(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.reader.push(bytes);
        while let Some(item) = self.reader.next_item().map_err(|error| invalid(error.to_string()))? {
            self.item(item).await?;
        }
        Ok(())
    }

    async fn item(&mut self, item: Item) -> Result<(), Refusal> {
        if self.upload.is_some() && !matches!(item, Item::Manifest { .. }) {
            return Err(invalid("a manifest is cut short"));
        }
        match item {
            Item::Header(header) => self.header = Some(header),
            Item::Seeder(..) if self.seeders.len() == MAX_SEEDERS => return Err(invalid("too many seeders")),
            Item::Seeder(id, seeder) => self.seeders.push((id, seeder)),
            Item::Node(inode, mut node) => {
                let inode = self.number(inode).await?;
                if node.is_orphan() {
                    return Err(invalid("a file has no name"));
                }
                if self.image.node(inode).is_some() {
                    return Err(invalid("an inode comes twice"));
                }
                match &mut node.body {
                    Body::Directory { parent } => *parent = self.number(*parent).await?,
                    // A number that was never a version of anything here.
                    Body::File(content) => content.version = inode.0,
                    Body::Symlink { .. } | Body::Fifo | Body::Socket | Body::Device(_) => {}
                }
                self.name(NameWrite::Node(inode, Some(node))).await?;
            }
            Item::Entry(directory, name, inode) => {
                let (directory, inode) = (self.number(directory).await?, self.number(inode).await?);
                if self.image.entry(directory, name.as_bytes()).is_some() {
                    return Err(invalid("a name comes twice"));
                }
                self.name(NameWrite::Entry(directory, name, Some(inode))).await?;
            }
            Item::Manifest { digest, last, data } => self.manifest(digest, last, &data).await?,
            Item::End(_) => {}
        }
        Ok(())
    }

    /// The number here of an inode of the file.
    async fn number(&mut self, inode: InodeNumber) -> Result<InodeNumber, Refusal> {
        if let Some(number) = self.numbers.get(&inode) {
            return Ok(*number);
        }
        if self.numbers.len() >= MAX_NODES {
            return Err(invalid("too many inodes"));
        }
        if self.fresh.left() == 0 {
            self.fresh = self.catalog.numbers().take(AT_ONCE).await.map_err(store)?;
        }
        let number = InodeNumber(self.fresh.take()?);
        self.numbers.insert(inode, number);
        Ok(number)
    }

    async fn name(&mut self, write: NameWrite) -> Result<(), Refusal> {
        self.pending.push(crate::catalog::writer::record_of(self.tree, write.clone()));
        self.image.apply(write, &mut Vec::new());
        if self.pending.len() as u64 >= AT_ONCE {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Refusal> {
        let writes = std::mem::take(&mut self.pending);
        if !writes.is_empty() {
            self.catalog.store().commit(Commit { conditions: Vec::new(), writes }).await.map_err(store)?;
        }
        Ok(())
    }

    async fn manifest(&mut self, digest: ManifestDigest, last: bool, data: &[u8]) -> Result<(), Refusal> {
        let (open, mut upload) = match self.upload.take() {
            Some(open) => open,
            None => (digest, Upload::new(self.catalog.manifests().clone())),
        };
        let done = async {
            if open != digest {
                return Err(invalid("a manifest is cut short"));
            }
            upload.push(data).await?;
            if last { upload.finish(digest).await.map(Some) } else { Ok(None) }
        };
        match done.await? {
            None => self.upload = Some((digest, upload)),
            Some(file_bytes) => {
                self.manifests.insert(digest, file_bytes);
            }
        }
        Ok(())
    }

    /// The file is complete: verify all of it, and make it the catalog. `joined`: seeders that are there, registered or not.
    pub async fn finish(&mut self, replace: Replace, joined: &[PeerId]) -> Result<Imported, Refusal> {
        let totals = self.reader.finish().map_err(|error| invalid(error.to_string()))?;
        if self.upload.is_some() {
            return Err(invalid("a manifest is cut short"));
        }
        self.flush().await?;
        self.image.check().map_err(|problem| invalid(format!("its names do not fit together: {problem}")))?;
        self.check_manifests()?;
        let header = self.header.ok_or_else(|| invalid("it has no header"))?;
        // Nothing is changed between the look and the commit.
        let _still = self.catalog.pause().await;
        if replace == Replace::Empty {
            self.catalog.check_empty()?;
        }
        let (old, seen) = {
            let view = self.catalog.view();
            (view.swarm, view.revision)
        };
        let mut writes =
            vec![Write { key: Key::Import(self.tree).encode(), value: None }, put(Key::Import(old.tree), Record::Mark)];
        let mut swarm = Swarm { id: old.id, tree: self.tree };
        let was_empty = self.catalog.view().image.counts().inodes <= 1;
        let registered = self.catalog.seeders().await.map_err(store)?;
        let mut strangers: HashSet<PeerId> =
            registered.iter().map(|(id, _)| *id).chain(joined.iter().copied()).collect();
        for (id, _) in &self.seeders {
            strangers.remove(id);
        }
        let strangers = strangers.len();
        if header.swarm != old.id && strangers > 0 && replace == Replace::Empty {
            let message = format!(
                "the file is of swarm {}, and this is swarm {}, which {strangers} other seeders have joined: the seeders \
                 of the file's would not be let in. To bring that swarm back, import it into an empty tracker (one \
                 with a new --data folder) before any seeder joins it",
                header.swarm, old.id
            );
            return Err(Refusal::new(Fault::OtherSwarm, message));
        }
        if strangers == 0 && (was_empty || header.swarm != old.id) {
            // No seeder would lose its swarm: it becomes the one that was lost, whose seeders know it again.
            swarm.id = header.swarm;
            let valid = (1..=16).contains(&header.settings.replicas)
                && (1..=header.settings.replicas).contains(&header.settings.min_replicas);
            if valid {
                writes.push(put(Key::Settings, Record::Settings(header.settings)));
            }
            let seeders = std::mem::take(&mut self.seeders);
            writes.extend(seeders.into_iter().map(|(id, seeder)| put(Key::Seeder(id), Record::Seeder(seeder))));
        }
        writes.push(put(Key::Swarm, Record::Swarm(swarm)));
        let conditions = vec![Condition::UnchangedSince(Key::Swarm.encode(), seen)];
        let commit = Commit { conditions, writes };
        let Outcome::Committed(revision) = self.catalog.store().commit(commit).await.map_err(store)? else {
            return Err(Refusal::new(Fault::Stale, "the catalog was replaced meanwhile: try again"));
        };
        self.catalog.state().reached_within(revision, RELOAD).await;
        if let Some(end) = self.catalog.leases().end_of_all(Instant::now()) {
            tokio::time::sleep_until(end.into()).await;
        }
        let counts = self.image.counts();
        // Now the old tree goes; after a kill the next start finds its mark.
        self.tree = old.tree;
        Ok(Imported {
            files: counts.files,
            directories: counts.directories,
            manifests: totals.manifests,
            revision,
            swarm: swarm.id,
            of_file: header.swarm,
        })
    }

    /// Every file's manifest came along, and says the file's size.
    fn check_manifests(&self) -> Result<(), Refusal> {
        for content in self.image.nodes().filter_map(|(_, node)| node.content()) {
            let Some(digest) = content.manifest else { continue };
            match self.manifests.get(&digest) {
                Some(size) if *size == content.size => {}
                Some(_) => return Err(invalid(format!("manifest {digest} has another size than its file"))),
                None => return Err(invalid(format!("manifest {digest} is missing"))),
            }
        }
        Ok(())
    }
}

impl Drop for Import {
    /// The new tree if it did not become the live one, else the old one.
    fn drop(&mut self) {
        self.catalog.manifests().leave(Leftover::Tree(self.tree));
    }
}
