//! What is mounted where, from `/proc/self/mountinfo`.
//!
//! Paths are compared as text and never looked at: looking at a dead mount fails, and at a hung one hangs.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Type that the kernel shows for our mounts.
pub const OUR_TYPE: &str = "fuse.swarmfs";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// `major:minor`, which also names its folder in `/sys/class/bdi`.
    pub device: String,
    /// Where.
    pub mountpoint: PathBuf,
    /// `ext4`, `fuse.swarmfs`, …
    pub kind: String,
    /// Of what: for ours the tracker and folder.
    pub source: String,
}

impl MountEntry {
    /// Whether it is one of ours.
    pub fn is_ours(&self) -> bool {
        self.kind == OUR_TYPE
    }

    /// The number by which the kernel calls a FUSE connection, in `/sys/fs/fuse/connections`.
    pub fn connection(&self) -> Option<&str> {
        self.device.split_once(':').map(|(_, minor)| minor)
    }
}

/// All mounts that this process sees, a later one over an earlier one.
pub fn read() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mount that is seen at a folder, if one is mounted exactly there.
pub fn at(mountpoint: &Path) -> io::Result<Option<MountEntry>> {
    Ok(read()?.into_iter().rev().find(|entry| entry.mountpoint == mountpoint))
}

/// An absolute path with no links in it, except that the last part is not looked at.
///
/// Errors: the folder in which it lies does not exist.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => path.canonicalize(),
    }
}

fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    let mountpoint = fields.nth(1)?;
    let mut after = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, source) = (after.next()?, after.next()?);
    let text = |field| OsString::from_vec(unescape(field)).to_string_lossy().into_owned();
    Some(MountEntry {
        device: text(device),
        mountpoint: PathBuf::from(OsString::from_vec(unescape(mountpoint))),
        kind: text(kind),
        source: text(source),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let octal = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        });
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = &after[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

/// Processes that use something below a folder, for a person who cannot unmount it.
///
/// Shape: at most `most`, as `name (pid)`; only those that this user may look at.
pub fn users_of(folder: &Path, most: usize) -> Vec<String> {
    let mut users = Vec::new();
    let Ok(processes) = std::fs::read_dir("/proc") else { return users };
    for process in processes.flatten() {
        let path = process.path();
        if !process.file_name().as_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let mut links: Vec<PathBuf> = ["cwd", "root", "exe"].iter().map(|name| path.join(name)).collect();
        if let Ok(files) = std::fs::read_dir(path.join("fd")) {
            links.extend(files.flatten().map(|file| file.path()));
        }
        // The links are read, never followed.
        let uses = links.iter().any(|link| std::fs::read_link(link).is_ok_and(|target| target.starts_with(folder)));
        if uses {
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            users.push(format!("{} ({})", name.trim(), process.file_name().to_string_lossy()));
            if users.len() == most {
                break;
            }
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_and_without_optional_fields_are_read() {
        let text = b"36 35 98:0 /mnt1 / rw,noatime master:1 shared:2 - ext4 /dev/root rw\n\
            88 36 0:51 / /tmp/a\\040b\\012c ro,nosuid - fuse.swarmfs swarm://h:1/x\\040y ro,user_id=0\n\
            junk\n\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!((mounts[0].mountpoint.as_path(), mounts[0].is_ours()), (Path::new("/"), false));
        assert_eq!(mounts[1].mountpoint, Path::new("/tmp/a b\nc"));
        assert_eq!((mounts[1].source.as_str(), mounts[1].device.as_str()), ("swarm://h:1/x y", "0:51"));
        assert!(mounts[1].is_ours());
        assert_eq!(mounts[1].connection(), Some("51"));
    }

    #[test]
    fn a_backslash_that_escapes_nothing_stays() {
        assert_eq!(unescape(b"a\\b\\9\\134"), b"a\\b\\9\\");
    }

    #[test]
    fn this_process_sees_its_root_and_who_uses_it() {
        assert!(at(Path::new("/")).unwrap().is_some());
        let here = std::env::current_dir().unwrap();
        assert!(!users_of(&here, 100_000).is_empty());
    }
}
