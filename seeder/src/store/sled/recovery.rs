//! What opening a store finds and puts right.
//!
//! Runs before the lanes, alone. Invariant: what it leaves in the index is there: a record whose file is
//! missing or short is dropped, bytes that may not have reached the disk were verified, a complete file
//! without a record proved itself by its hash, and the rest is swept.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use swarm_proto::{ChunkRange, ChunkSet, Segment, SegmentId};

use super::core::{Core, now_ms};
use super::database::{Database, OpenError};
use super::home::Home;
use super::read::Content;
use super::schema::{Keys, Place, Record, Row, Setting};
use super::settle::Progress;
use crate::store::disk::{Access, Disk};
use crate::store::segment_file::{FOLDERS, file_bytes, folder_name, rebuild_tree, segment_length, write_tree};
use crate::store::{StoreError, failed};

/// How long a segment whose record was lost is kept: as long as one that was just sent.
const KEEP_FOUND: Duration = Duration::from_secs(3600);

/// Open the database; one that is damaged is set aside, as all that the files hold can be found again.
pub(super) fn open_database(home: &Home, cache_bytes: u64, disk: &Arc<dyn Disk>) -> Result<Database, StoreError> {
    let folder = home.database();
    let is_new = !folder.exists();
    let why = match Database::open(&folder, cache_bytes, disk.clone()) {
        Ok(database) => {
            if is_new {
                database.sync_names().map_err(failed("create the database"))?;
                disk.sync_folder(home.dir()).map_err(failed("create the database"))?;
            }
            return Ok(database);
        }
        Err(OpenError::Io(error)) => return Err(failed("open the database")(error)),
        Err(OpenError::Damaged(why)) => why,
    };
    let aside = (1..1000).map(|number| home.dir().join(format!("db.damaged-{number}"))).find(|path| !path.exists());
    let aside = aside.ok_or_else(|| StoreError::Unusable(format!("{} is damaged: {why}", folder.display())))?;
    tracing::error!(%why, aside = %aside.display(), "the database is damaged; set it aside and look through the files");
    disk.rename(&folder, &aside).map_err(failed("set the damaged database aside"))?;
    match Database::open(&folder, cache_bytes, disk.clone()) {
        Ok(database) => database.sync_names().map(|()| database).map_err(failed("create the database")),
        Err(OpenError::Io(error)) => Err(failed("open the database")(error)),
        Err(OpenError::Damaged(why)) => Err(failed("open the database")(io::Error::other(why))),
    }
}

/// A number setting; 0 if it is absent.
pub(super) fn number(database: &Database, setting: Setting) -> Result<u64, StoreError> {
    let value = database.get(Row::Setting(setting)).map_err(failed("read the settings"))?;
    Ok(value.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?))).unwrap_or_default())
}

/// What the database says that there is.
#[derive(Default)]
pub(super) struct Found {
    pub(super) records: HashMap<SegmentId, Record>,
    /// Rows that did not decode.
    damaged: Vec<SegmentId>,
    /// Above all numbers that are in use.
    pub(super) next: u64,
    /// Bytes written from here on are not known to be on the disk.
    settled: u64,
}

/// Read all records.
pub(super) fn read_records(database: &Database) -> Result<Found, StoreError> {
    let mut found = Found {
        next: number(database, Setting::Next)?.max(1),
        settled: number(database, Setting::Settled)?,
        ..Found::default()
    };
    for row in database.scan(Keys::segments()) {
        let (row, value) = row.map_err(failed("read the records"))?;
        let Some(Row::Segment(id)) = row else { continue };
        let Some(record) = Record::decode(&id, &value) else {
            tracing::warn!(segment = %id, "its record is damaged; dropped");
            found.damaged.push(id);
            continue;
        };
        let inline = if let Place::Inline(number) = record.place { number.get() } else { 0 };
        for number in [record.written, record.touched, inline] {
            found.next = found.next.max(number.saturating_add(1));
        }
        found.records.insert(id, record);
    }
    Ok(found)
}

/// Bring the records, the files and the inline chunks to agree; fills the index.
pub(super) fn recover(core: &Core, found: Found) -> Result<(), StoreError> {
    let Found { mut records, damaged, settled, .. } = found;
    let mut dropped: HashSet<SegmentId> = damaged.into_iter().collect();
    sweep_temp(core).map_err(failed("sweep temporary files"))?;
    let mut files = list_files(core).map_err(failed("list the segments' files"))?;

    let mut verified = Vec::new();
    records.retain(|id, record| {
        let segment = record.segment(*id);
        let length = files.remove(id);
        let is_there = record.place != Place::File
            || record.is_empty()
            || length.is_some_and(|length| length >= file_bytes(segment));
        if !is_there || (record.written >= settled && !verify(core, segment, record, &mut verified)) {
            tracing::warn!(segment = %id, "its bytes did not survive; dropped");
            dropped.insert(*id);
            if length.is_some() && record.place == Place::File {
                files.insert(*id, length.unwrap_or_default());
            }
            return false;
        }
        true
    });
    for (id, length) in files {
        match take_back(core, id, length).map_err(failed("look through a file without a record"))? {
            Some(record) => {
                dropped.remove(&id);
                verified.push(id);
                records.insert(id, record);
            }
            None => super::settle::remove_temp(core, &core.home.segment_file(&id)),
        }
    }

    // Whose chunks a damaged record named is not known: then look through all.
    let sweep_from = if dropped.is_empty() { settled } else { 0 };
    sweep_inline(core, &records, sweep_from).map_err(failed("sweep chunks without a record"))?;
    let mut writes: Vec<_> = dropped.into_iter().map(|id| (Row::Segment(id), None)).collect();
    for id in &verified {
        writes.extend(records.get(id).map(|record| (Row::Segment(*id), Some(record.encode(id)))));
    }
    if !writes.is_empty() {
        let next = core.numbers.next().to_le_bytes().to_vec();
        writes.push((Row::Setting(Setting::Next), Some(next)));
        core.database.apply(writes);
        core.database.flush().map_err(failed("write records"))?;
    }
    for (id, record) in records {
        core.room.take(super::room::cost(record.segment(id), record.place));
        core.index.set(id, Some(record));
    }
    Ok(())
}

/// Read again what may not have reached the disk; false if nothing of it is good.
fn verify(core: &Core, segment: Segment, record: &mut Record, verified: &mut Vec<SegmentId>) -> bool {
    if record.is_empty() {
        return true;
    }
    let content = match record.place {
        Place::Inline(number) => Content::Inline(core, number.get()),
        Place::File => match core.disk.open(&core.home.segment_file(&segment.id), Access::Read) {
            Ok(file) => Content::File(file),
            Err(_) => return false,
        },
    };
    let tree = match content.read_tree(segment) {
        Ok(Some(tree)) => tree,
        // A record that is not whole cannot be proved without its tree.
        _ if !record.is_whole() => return false,
        _ => match content.rebuild_tree(segment) {
            Ok(Some(tree)) => tree,
            _ => return false,
        },
    };
    let mut good = ChunkSet::empty(record.chunks());
    for chunk in record.chunk_set().iter() {
        let one = ChunkRange::new(chunk, chunk + 1);
        if content.read(segment, one).is_ok_and(|bytes| tree.check(one, &bytes).is_ok()) {
            good.insert(one);
        }
    }
    if good.is_empty() {
        return false;
    }
    let progress = if record.place == Place::File { Progress::File } else { Progress::Inline };
    core.unsettled.set(record.written, segment.id, progress);
    record.set_chunks(good);
    verified.push(segment.id);
    true
}

fn sweep_temp(core: &Core) -> io::Result<()> {
    for entry in core.disk.list(&core.home.temp())? {
        if !entry.is_folder {
            core.disk.unlink(&core.home.temp().join(entry.name))?;
        }
    }
    Ok(())
}

/// Lengths of all files that are named as segments; others are left alone.
fn list_files(core: &Core) -> io::Result<HashMap<SegmentId, u64>> {
    let mut files = HashMap::new();
    for byte in (0..FOLDERS).filter_map(|number| u8::try_from(number).ok()) {
        for entry in core.disk.list(&core.home.segments().join(folder_name(byte)))? {
            match entry.name.parse::<SegmentId>() {
                Ok(id) if !entry.is_folder && id.as_bytes()[0] == byte => drop(files.insert(id, entry.length)),
                _ => tracing::warn!(name = %entry.name, "not a segment's file; left alone"),
            }
        }
    }
    Ok(files)
}

/// A file without a record, if its bytes hash to its name.
fn take_back(core: &Core, id: SegmentId, length: u64) -> io::Result<Option<Record>> {
    let Some(length) = segment_length(length) else { return Ok(None) };
    let segment = Segment { id, length };
    let file = core.disk.open(&core.home.segment_file(&id), Access::Mend)?;
    let Ok(Some(tree)) = rebuild_tree(file.as_ref(), segment) else { return Ok(None) };
    if !super::read::Content::File(file).read_tree(segment).is_ok_and(|found| found.is_some()) {
        let file = core.disk.open(&core.home.segment_file(&id), Access::Mend)?;
        write_tree(file.as_ref(), &tree)?;
    }
    tracing::info!(segment = %id, "a complete file without a record; taken back");
    let written = core.unsettled.begin(&core.numbers, id);
    core.unsettled.set(written, id, Progress::File);
    let keep = u64::try_from(KEEP_FOUND.as_millis()).unwrap_or(u64::MAX);
    let kept_until_ms = now_ms().saturating_add(keep);
    Ok(Some(Record { length, place: Place::File, written, touched: written, kept_until_ms, partial: None }))
}

/// Remove inline chunks that no record names: those marked as garbage, and those that were written last.
fn sweep_inline(core: &Core, records: &HashMap<SegmentId, Record>, settled: u64) -> io::Result<()> {
    let mut garbage = HashSet::new();
    for row in core.database.scan(Keys::garbage()) {
        if let (Some(Row::Garbage { number }), _) = row? {
            garbage.insert(number);
        }
    }
    let named: HashSet<u64> = records
        .values()
        .filter_map(|record| match record.place {
            Place::Inline(number) => Some(number.get()),
            Place::File => None,
        })
        .collect();
    for row in core.database.scan(Keys::inline_from(settled)) {
        if let (Some(Row::Chunk { number, .. } | Row::Tree { number }), _) = row? {
            garbage.insert(number);
        }
    }
    for number in garbage.into_iter().filter(|number| !named.contains(number)) {
        super::commit::collect(core, number)?;
    }
    Ok(())
}
