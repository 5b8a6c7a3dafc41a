//! The file that grows beside the destination until it is whole, and then takes its place.
//!
//! Invariant: what stands under the destination's name is the old file or the whole new one. All of this
//! blocks: call it where blocking is allowed.

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FlockOperation, SeekFrom, Timespec, Timestamps, flock, seek};
use swarm_proto::v1::Node;
use swarm_proto::{ByteRange, Extent, Manifest};

/// End of a partial file's name.
const SUFFIX: &[u8] = b".swarm-part";
/// Read at a time while verifying.
const BLOCK: usize = 1 << 20;

/// A file that is not whole yet, locked by this process.
#[derive(Debug)]
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    to: PathBuf,
}

/// What was there before.
#[derive(Debug)]
pub(crate) enum Begun {
    /// The destination has this content already.
    Whole,
    /// These extents, by index, are lacking.
    Lacking(Partial, Vec<usize>),
}

impl Partial {
    /// Begin or go on: what an earlier run has left is verified by its hash and kept.
    ///
    /// Errors: `WouldBlock` if another process writes it; `IsADirectory` if a folder is in the way.
    pub(crate) fn begin(to: &Path, manifest: &Manifest) -> io::Result<Begun> {
        // Through a link, the file behind it is replaced, as by `cp`.
        let to = match fs::symlink_metadata(to) {
            Ok(meta) if meta.is_symlink() => fs::canonicalize(to).unwrap_or_else(|_| to.to_owned()),
            _ => to.to_owned(),
        };
        match fs::metadata(&to) {
            Ok(meta) if meta.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(meta) if meta.is_file() && meta.len() == manifest.size() => {
                let same = File::open(&to).and_then(|file| Ok(lacking(&file, manifest)?.is_empty()));
                if same.unwrap_or(false) {
                    return Ok(Begun::Whole);
                }
            }
            _ => {}
        }
        let path = partial_path(&to);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(NOFOLLOW).open(&path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let had = file.metadata()?.len();
        let lacking = match had {
            0 => all_data(manifest),
            _ => {
                let lacking = lacking(&file, manifest)?;
                let holes = manifest.extents().iter().enumerate().filter(|(_, e)| matches!(e, Extent::Hole { .. }));
                if holes.into_iter().any(|(index, _)| lacking.contains(&index)) {
                    // Of another version, with data where this one has a hole.
                    file.set_len(0)?;
                    all_data(manifest)
                } else {
                    lacking
                }
            }
        };
        file.set_len(manifest.size())?;
        Ok(Begun::Lacking(Self { file, path, to }, lacking))
    }

    /// Write bytes at an offset.
    pub(crate) fn write(&self, mut offset: u64, bytes: &[bytes::Bytes]) -> io::Result<()> {
        for bytes in bytes {
            self.file.write_all_at(bytes, offset)?;
            offset += bytes.len() as u64;
        }
        Ok(())
    }

    /// All is written: take the destination's place, with the attributes of `node`.
    pub(crate) fn finish(self, node: &Node, owner: Owner) -> io::Result<()> {
        set_attributes(&self.file, node, owner)?;
        fs::rename(&self.path, &self.to)
    }
}

/// `O_NOFOLLOW`: nobody shall make us write through a link of the partial's name.
const NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();

/// Whether files get the owner that the catalog names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// As root.
    Catalog,
    /// As anybody else: us.
    Ours,
}

impl Owner {
    /// What this process can do.
    pub(crate) fn possible() -> Self {
        match rustix::process::geteuid().is_root() {
            true => Self::Catalog,
            false => Self::Ours,
        }
    }

    /// The permission bits to set: set-id bits only with the owner they are meant for.
    pub(crate) fn mode(self, node: &Node) -> u32 {
        match self {
            Self::Catalog => node.mode & 0o7777,
            Self::Ours => node.mode & 0o1777,
        }
    }
}

fn set_attributes(file: &File, node: &Node, owner: Owner) -> io::Result<()> {
    if owner == Owner::Catalog {
        fchown(file, Some(node.uid), Some(node.gid))?;
    }
    file.set_permissions(Permissions::from_mode(owner.mode(node)))?;
    file.set_times(FileTimes::new().set_modified(time(node.modified_ns)))
}

/// Give a folder the attributes of `node`; call it when all is in it.
pub(crate) fn finish_folder(path: &Path, node: &Node, owner: Owner) -> io::Result<()> {
    set_attributes(&File::open(path)?, node, owner)
}

/// Make a symlink, fifo or socket; one that is there is replaced unless it is the same.
pub(crate) fn make_entry(path: &Path, node: &Node, owner: Owner) -> io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat, symlinkat};
    use swarm_proto::v1::NodeKind;
    if let Ok(meta) = fs::symlink_metadata(path) {
        if meta.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        fs::remove_file(path)?;
    }
    let mode = Mode::from_raw_mode(owner.mode(node));
    match node.kind() {
        NodeKind::Symlink => symlinkat(&node.link_target[..], CWD, path)?,
        NodeKind::Fifo => mknodat(CWD, path, FileType::Fifo, mode, 0)?,
        _ => mknodat(CWD, path, FileType::Socket, mode, 0)?,
    }
    if owner == Owner::Catalog {
        std::os::unix::fs::lchown(path, Some(node.uid), Some(node.gid))?;
    }
    let time = Timespec {
        tv_sec: node.modified_ns.div_euclid(1_000_000_000),
        tv_nsec: node.modified_ns.rem_euclid(1_000_000_000),
    };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn time(ns: i64) -> SystemTime {
    match u64::try_from(ns) {
        Ok(ns) => UNIX_EPOCH + Duration::from_nanos(ns),
        Err(_) => UNIX_EPOCH - Duration::from_nanos(ns.unsigned_abs()),
    }
}

pub(super) fn partial_path(to: &Path) -> PathBuf {
    let name = to.file_name().unwrap_or_default().as_bytes();
    let mut partial = vec![b'.'];
    match name.len() + SUFFIX.len() < 255 {
        true => partial.extend_from_slice(name),
        // Too long to be lengthened: what is cut off is told apart by its hash.
        false => partial.extend_from_slice(blake3::hash(name).to_hex().as_bytes()),
    }
    partial.extend_from_slice(SUFFIX);
    to.with_file_name(std::ffi::OsString::from_vec(partial))
}

fn all_data(manifest: &Manifest) -> Vec<usize> {
    let data = manifest.extents().iter().enumerate().filter(|(_, extent)| matches!(extent, Extent::Data { .. }));
    data.map(|(index, _)| index).collect()
}

/// Extents whose bytes are not in the file; parts of segments cannot be told and count as lacking.
fn lacking(file: &File, manifest: &Manifest) -> io::Result<Vec<usize>> {
    let length = file.metadata()?.size();
    let mut lacking = Vec::new();
    let mut block = vec![0; BLOCK];
    for (index, extent) in manifest.extents().iter().enumerate() {
        let range = ByteRange::at(manifest.start_of(index), extent.length());
        let there = match extent {
            Extent::Hole { .. } => is_zero(file, range.intersect(ByteRange::at(0, length)), &mut block)?,
            Extent::Data { segment, offset_in_segment: 0, length: all } if *all == segment.length => {
                range.end <= length && hash(file, range, &mut block)? == *segment.id.as_bytes()
            }
            Extent::Data { .. } => false,
        };
        if !there {
            lacking.push(index);
        }
    }
    Ok(lacking)
}

fn hash(file: &File, range: ByteRange, block: &mut [u8]) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    each_block(file, range, block, |bytes| {
        hasher.update(bytes);
        true
    })?;
    Ok(*hasher.finalize().as_bytes())
}

fn is_zero(file: &File, range: ByteRange, block: &mut [u8]) -> io::Result<bool> {
    let mut at = range.start;
    let mut zero = true;
    while at < range.end && zero {
        // Holes need not be read; where the file system cannot say, all is read.
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) if start >= range.end => return Ok(true),
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(true),
            Err(_) => at,
        };
        let end = seek(file, SeekFrom::Hole(start)).unwrap_or(range.end).clamp(start + 1, range.end.max(start + 1));
        each_block(file, ByteRange { start, end: end.min(range.end) }, block, |bytes| {
            zero = bytes.iter().all(|byte| *byte == 0);
            zero
        })?;
        at = end;
    }
    Ok(zero)
}

fn each_block(file: &File, range: ByteRange, block: &mut [u8], mut take: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let now = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(block.len());
        file.read_exact_at(&mut block[..now], at)?;
        if !take(&block[..now]) {
            return Ok(());
        }
        at += now as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_proto::ChunkTree;

    fn sample() -> (Vec<u8>, Manifest) {
        let parts = [vec![1u8; 50_000], vec![2; 30_000]];
        let extent = |bytes: &Vec<u8>| Extent::whole(ChunkTree::build(bytes).segment());
        let extents = vec![extent(&parts[0]), Extent::Hole { length: 300_000 }, extent(&parts[1])];
        let content = [&parts[0][..], &vec![0; 300_000], &parts[1]].concat();
        (content, Manifest::new(extents).unwrap())
    }

    fn begin(to: &Path) -> (Partial, Vec<usize>) {
        match Partial::begin(to, &sample().1).unwrap() {
            Begun::Lacking(partial, lacking) => (partial, lacking),
            Begun::Whole => panic!("it is not whole"),
        }
    }

    #[test]
    fn what_an_earlier_run_wrote_is_kept_and_the_rest_is_lacking() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("file");
        let (content, manifest) = sample();
        let (partial, lacking) = begin(&to);
        assert_eq!(lacking, [0, 2]);
        partial.write(0, &[content[..50_000].to_vec().into()]).unwrap();
        drop(partial);
        let (partial, lacking) = begin(&to);
        assert_eq!(lacking, [2]);
        assert!(!to.exists());
        partial
            .write(350_000, &[content[350_000..360_000].to_vec().into(), content[360_000..].to_vec().into()])
            .unwrap();
        let node = Node { mode: 0o640, modified_ns: 1_234_567_890_123_456_789, ..Node::default() };
        partial.finish(&node, Owner::Ours).unwrap();
        assert!(fs::read(&to).unwrap() == content);
        let meta = fs::metadata(&to).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (0o640, 1_234_567_890, 123_456_789));
        assert!(matches!(Partial::begin(&to, &manifest).unwrap(), Begun::Whole));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_flipped_bit_of_an_earlier_run_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("file");
        let (mut content, _) = sample();
        content[10] ^= 1;
        fs::write(partial_path(&to), &content).unwrap();
        assert_eq!(begin(&to).1, [0]);
        content[10] ^= 1;
        // Data in what must be a hole: begun anew, so that no wrong byte stays.
        content[100_000] = 9;
        fs::write(partial_path(&to), &content).unwrap();
        let (partial, lacking) = begin(&to);
        assert_eq!(lacking, [0, 2]);
        assert!(fs::read(&partial.path).unwrap().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn two_do_not_write_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("file");
        let first = begin(&to);
        let error = Partial::begin(&to, &sample().1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(first);
        begin(&to);
    }

    #[test]
    fn a_link_in_the_partials_place_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("file");
        let victim = folder.path().join("victim");
        fs::write(&victim, b"mine").unwrap();
        std::os::unix::fs::symlink(&victim, partial_path(&to)).unwrap();
        assert!(Partial::begin(&to, &sample().1).is_err());
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
    }

    #[test]
    fn the_longest_name_has_a_partial_too() {
        let name = "n".repeat(255);
        let path = partial_path(&Path::new("/x").join(&name));
        assert!(path.file_name().unwrap().len() <= 255);
        assert_ne!(path, partial_path(&Path::new("/x").join("n".repeat(254))));
    }
}
