//! Reading the catalog from its store, and making it the first time.

use bytes::Bytes;
use swarm_proto::{InodeNumber, ManifestDigest, Revision, SwarmId};

use super::state::Seen;
use super::{now_ns, put};
use crate::namespace::{Body, Extended, Image, Name, NameWrite, Node};
use crate::store::history::Follower;
use crate::store::schema::{Key, Record, SchemaError, Settings, Swarm, TreeNumber, prefix};
use crate::store::{Commit, Condition, Event, Store, StoreError, scan_all};

/// What a record says, as far as the image cares.
pub(super) enum Fact {
    /// A name or an inode of the live tree.
    Name(NameWrite),
    /// Which swarm, which tree.
    Swarm(Swarm),
    /// The settings.
    Settings(Settings),
    /// A manifest is there.
    Manifest(ManifestDigest),
}

impl Fact {
    /// Read a record that was written, or removed.
    pub(super) fn read(live: TreeNumber, key: &[u8], value: Option<&Bytes>) -> Result<Option<Self>, StoreError> {
        let key = Key::decode(key).map_err(corrupt)?;
        match key {
            Key::Node(tree, _) | Key::Entry(tree, ..) if tree != live => return Ok(None),
            Key::Manifest(digest) => return Ok(value.map(|_| Self::Manifest(digest))),
            Key::Node(..) | Key::Entry(..) | Key::Swarm | Key::Settings => {}
            _ => return Ok(None),
        }
        let record = value.map(|value| Record::decode(&key, value)).transpose().map_err(corrupt)?;
        Ok(match (key, record) {
            (Key::Node(_, inode), Some(Record::Node(node))) => Some(Self::Name(NameWrite::Node(inode, Some(node)))),
            (Key::Node(_, inode), None) => Some(Self::Name(NameWrite::Node(inode, None))),
            (Key::Entry(_, directory, name), record) => {
                let name = Name::new(&name).map_err(|refusal| StoreError::Corrupt(refusal.message))?;
                let inode = match record {
                    Some(Record::Entry(inode)) => Some(inode),
                    _ => None,
                };
                Some(Self::Name(NameWrite::Entry(directory, name, inode)))
            }
            (_, Some(Record::Swarm(swarm))) => Some(Self::Swarm(swarm)),
            (_, Some(Record::Settings(settings))) => Some(Self::Settings(settings)),
            _ => None,
        })
    }
}

pub(super) fn corrupt(error: SchemaError) -> StoreError {
    StoreError::Corrupt(error.to_string())
}

/// Read one record.
pub(super) async fn get(store: &dyn Store, key: Key) -> Result<Option<Record>, StoreError> {
    let found = store.get(key.encode()).await?;
    found.map(|versioned| Record::decode(&key, &versioned.value)).transpose().map_err(corrupt)
}

/// The first start: a swarm with an empty root folder, which belongs to whoever starts it.
pub(super) async fn make_if_absent(store: &dyn Store) -> Result<(), StoreError> {
    if store.get(Key::Swarm.encode()).await?.is_some() {
        return Ok(());
    }
    let tree = TreeNumber(1);
    let now_ns = now_ns();
    let root = Node {
        mode: 0o755,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        links: 2,
        accessed_ns: now_ns,
        modified_ns: now_ns,
        changed_ns: now_ns,
        created_ns: now_ns,
        extended: Extended::default(),
        body: Body::Directory { parent: InodeNumber::ROOT },
    };
    let writes = vec![
        put(Key::Swarm, Record::Swarm(Swarm { id: SwarmId::random(), tree })),
        put(Key::Node(tree, InodeNumber::ROOT), Record::Node(root)),
    ];
    // A conflict means that another replica was first, which is as good.
    store.commit(Commit { conditions: vec![Condition::Absent(Key::Swarm.encode())], writes }).await?;
    Ok(())
}

/// Read all names, and follow what comes after.
pub(super) async fn load(store: &dyn Store) -> Result<(Seen, Follower<Event>), StoreError> {
    loop {
        if let Some(loaded) = try_load(store).await? {
            return Ok(loaded);
        }
    }
}

/// None: the live tree was replaced meanwhile.
async fn try_load(store: &dyn Store) -> Result<Option<(Seen, Follower<Event>)>, StoreError> {
    let start = store.revision().await?;
    let mut follower = store.watch(start);
    let Some(Record::Swarm(swarm)) = get(store, Key::Swarm).await? else {
        return Err(StoreError::Corrupt("it does not say which swarm it is".into()));
    };
    let settings = match get(store, Key::Settings).await? {
        Some(Record::Settings(settings)) => settings,
        _ => Settings::default(),
    };
    let mut seen = Seen { image: Image::default(), swarm, settings, revision: start, names_at: start };
    let mut newest = start;
    let mut unread = Vec::new();
    for prefix in [prefix::nodes(swarm.tree), prefix::entries(swarm.tree)] {
        let each = |entry: crate::store::KeyValue| {
            newest = newest.max(entry.versioned.revision);
            if let Some(Fact::Name(write)) = Fact::read(swarm.tree, &entry.key, Some(&entry.versioned.value))? {
                unread.clear();
                seen.image.apply(write, &mut unread);
            }
            Ok(())
        };
        scan_all(store, prefix, each).await?;
    }
    // What was written while we read may be in the image or not; its events are absolute, so afterwards it is.
    while seen.revision < newest {
        let (revision, event): (Revision, _) = follower.next().await?;
        match seen.catch_up(revision, &event) {
            Ok(()) => {}
            Err(Some(error)) => return Err(error),
            Err(None) => return Ok(None),
        }
    }
    if let Err(problem) = seen.image.check() {
        tracing::error!(problem, "the catalog's names do not fit together");
    }
    Ok(Some((seen, follower)))
}
