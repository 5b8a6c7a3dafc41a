//! Files to move, and comparing them.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::{RngCore, SeedableRng, rngs::SmallRng};

/// Write a file of `length` bytes that no compression or dedup shortens; the same for the same seed.
pub(crate) fn write_random(path: &Path, length: u64, seed: u64) {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).unwrap();
    }
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    let mut block = vec![0; 1 << 20];
    let mut left = length;
    while left > 0 {
        let now = usize::try_from(left.min(block.len() as u64)).unwrap();
        rng.fill_bytes(&mut block[..now]);
        out.write_all(&block[..now]).unwrap();
        left -= now as u64;
    }
    out.flush().unwrap();
}

/// Bytes that no compression or dedup shortens; the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// close(2), and what it said: dropping a file does not tell.
pub(crate) fn close(file: File) -> std::io::Result<()> {
    nix::unistd::close(file).map_err(std::io::Error::from)
}

/// Both files have the same bytes; the panic names the first difference.
#[track_caller]
pub(crate) fn assert_same_file(a: &Path, b: &Path) {
    if let Err(difference) = compare(a, b) {
        panic!("{} and {}: {difference}", a.display(), b.display());
    }
}

/// Read all of `path`, which has the bytes of `want`, calling `at` after each MiB; returns the longest wait for one.
pub(crate) fn read_in_steps(path: &Path, want: &Path, mut at: impl FnMut(u64)) -> Duration {
    let (mut file, mut model) = (File::open(path).unwrap(), File::open(want).unwrap());
    let (mut block, mut model_block) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let (mut done, mut longest) = (0, Duration::ZERO);
    loop {
        let began = Instant::now();
        let mut filled = 0;
        while filled < block.len() {
            match file.read(&mut block[filled..]).unwrap_or_else(|error| panic!("read at {} MiB: {error}", done)) {
                0 => break,
                count => filled += count,
            }
        }
        longest = longest.max(began.elapsed());
        model.read_exact(&mut model_block[..filled]).unwrap();
        assert!(block[..filled] == model_block[..filled], "wrong bytes in MiB {done}");
        if filled < block.len() {
            return longest;
        }
        done += 1;
        at(done);
    }
}

fn compare(a: &Path, b: &Path) -> Result<(), String> {
    let open = |path: &Path| File::open(path).map_err(|error| format!("open {}: {error}", path.display()));
    let (mut a_file, mut b_file) = (open(a)?, open(b)?);
    let (mut a_block, mut b_block) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    loop {
        let a_len = fill(&mut a_file, &mut a_block).map_err(|error| format!("read first at {offset}: {error}"))?;
        let b_len = fill(&mut b_file, &mut b_block).map_err(|error| format!("read second at {offset}: {error}"))?;
        if a_block[..a_len] != b_block[..b_len] {
            let at = a_block[..a_len].iter().zip(&b_block[..b_len]).position(|(a, b)| a != b);
            return Err(format!("differ at byte {}", offset + at.unwrap_or(a_len.min(b_len))));
        }
        if a_len == 0 {
            return Ok(());
        }
        offset += a_len;
    }
}

fn fill(file: &mut File, block: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match file.read(&mut block[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// Everything below `folder`, relative, sorted by bytes.
pub(crate) fn list(folder: &Path) -> Vec<PathBuf> {
    fn walk(root: &Path, below: &Path, out: &mut Vec<PathBuf>) {
        let folder = root.join(below);
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("list {}: {error}", folder.display()));
        for entry in entries {
            let entry = entry.unwrap();
            let path = below.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                walk(root, &path, out);
            }
            out.push(path);
        }
    }
    let mut out = Vec::new();
    walk(folder, Path::new(""), &mut out);
    out.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    out
}

/// Same names, kinds, link targets, modes and bytes. Returns the number of files compared.
#[track_caller]
pub(crate) fn assert_same_tree(a: &Path, b: &Path) -> usize {
    use std::os::unix::fs::PermissionsExt;
    let (names, others) = (list(a), list(b));
    if names != others {
        let missing: Vec<_> = names.iter().filter(|name| others.binary_search(name).is_err()).take(10).collect();
        let extra: Vec<_> = others.iter().filter(|name| names.binary_search(name).is_err()).take(10).collect();
        panic!("{} and {} list differently: missing {missing:?}, extra {extra:?}", a.display(), b.display());
    }
    let mut files = 0;
    for name in &names {
        let (left, right) = (a.join(name), b.join(name));
        let (left_kind, right_kind) = (left.symlink_metadata().unwrap(), right.symlink_metadata().unwrap());
        assert_eq!(left_kind.file_type(), right_kind.file_type(), "{}", name.display());
        if left_kind.is_symlink() {
            assert_eq!(std::fs::read_link(&left).unwrap(), std::fs::read_link(&right).unwrap(), "{}", name.display());
        } else {
            let (left_mode, right_mode) = (left_kind.permissions().mode(), right_kind.permissions().mode());
            assert_eq!(left_mode, right_mode, "mode of {}", name.display());
        }
        if left_kind.is_file() {
            assert_eq!(left_kind.len(), right_kind.len(), "length of {}", name.display());
            assert_same_file(&left, &right);
            files += 1;
        }
    }
    files
}
