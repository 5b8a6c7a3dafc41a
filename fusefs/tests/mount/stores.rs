//! Stores into a shared map of a file that the kernel reads from the cache by itself: the kernel maps nothing but the
//! cache's file, so they cannot be saved. Whoever made them is told, and nobody is given them for the swarm's bytes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Command;

use super::swarm::{Mounted, SEGMENT, Swarm, close, eventually, noise, run};

/// Stores through a map of a file opened anew. The map has a descriptor of its own, which is closed before the other.
const STORE: &str = "\
import errno, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(fd, b'written', 0)
view = mmap.mmap(fd, 0)
view[1000000:1000006] = b'stored'
view.flush()
def told(call):
    try:
        call()
    except OSError as error:
        return error.errno == errno.EIO
    return False
assert told(lambda: os.fsync(fd)), 'fsync'
view[1000000:1000005] = b'again'
view.close()
other = os.open(sys.argv[1], os.O_RDWR)
assert os.pread(other, 6, 1000000) != b'stored', 'a new handle reads what was not saved'
os.pwrite(other, b'more', 100)
os.close(other)
assert told(lambda: os.close(fd)), 'close'
";

fn file_system(mounted: &Mounted<'_>) -> std::sync::Arc<swarm_fusefs::fs::FileSystem> {
    mounted.mount.as_ref().unwrap().file_system().clone()
}

/// The kernel tells of a close a moment later; until then a file counts as open.
fn until_closed(mounted: &Mounted<'_>) {
    eventually("all is closed", || file_system(mounted).open_handles() == 0);
}

/// A handle through which the kernel reads by itself.
fn passed_reader(mounted: &Mounted<'_>, name: &str) -> File {
    let before = mounted.opens("passthrough");
    eventually("the kernel reads it by itself", || {
        until_closed(mounted);
        std::fs::read(mounted.path(name)).unwrap();
        mounted.opens("passthrough") > before
    });
    until_closed(mounted);
    let before = mounted.opens("passthrough");
    let reader = File::open(mounted.path(name)).unwrap();
    assert!(mounted.opens("passthrough") > before);
    reader
}

#[test]
fn a_store_that_the_kernel_puts_into_the_cache_is_told_and_never_shown_as_the_swarms() {
    let swarm = Swarm::new(2);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let mut model = noise(21, SEGMENT + 12_345);
    swarm.publish("/file", &model);
    if let Some(reason) = file_system(&one).no_passthrough() {
        return eprintln!("skipped: the kernel does not read cache files by itself here: {reason}");
    }
    let reader = passed_reader(&one, "file");
    let ended = match run(Command::new("python3").args(["-c", STORE]).arg(one.path("file"))) {
        Err(error) => return eprintln!("skipped: maps are made by python3, which does not start: {error}"),
        Ok(ended) => ended,
    };
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    model[..7].copy_from_slice(b"written");
    model[100..104].copy_from_slice(b"more");
    assert!(std::fs::read(two.path("file")).unwrap() == model, "what was written is saved, and no store");
    assert!(std::fs::read(one.path("file")).unwrap() == model, "while the reader has it open");
    drop(reader);
    until_closed(&one);
    assert!(std::fs::read(one.path("file")).unwrap() == model, "after that");
    let writer = OpenOptions::new().read(true).write(true).open(one.path("file")).unwrap();
    writer.write_all_at(b"later", 200).unwrap();
    close(writer).unwrap();
    model[200..205].copy_from_slice(b"later");
    assert!(std::fs::read(two.path("file")).unwrap() == model);
}

#[test]
fn a_version_that_was_stored_to_is_read_right_again_by_everybody() {
    let swarm = Swarm::new(1);
    let one = swarm.mount("one");
    let bytes = noise(22, SEGMENT + 12_345);
    swarm.publish("/file", &bytes);
    if let Some(reason) = file_system(&one).no_passthrough() {
        return eprintln!("skipped: the kernel does not read cache files by itself here: {reason}");
    }
    let reader = passed_reader(&one, "file");
    // Nobody can be told: the store comes after the last close.
    let script = "\
import ctypes, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
at = libc.mmap(None, 1 << 20, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
os.close(fd)
ctypes.memmove(at + 5000, b'stored', 6)
";
    let ended = match run(Command::new("python3").args(["-c", script]).arg(one.path("file"))) {
        Err(error) => return eprintln!("skipped: maps are made by python3, which does not start: {error}"),
        Ok(ended) => ended,
    };
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(std::fs::read(one.path("file")).unwrap() == bytes, "while the reader has it open");
    drop(reader);
    until_closed(&one);
    assert!(std::fs::read(one.path("file")).unwrap() == bytes, "after that");
    let again = passed_reader(&one, "file");
    let mut read = vec![0; bytes.len()];
    again.read_exact_at(&mut read, 0).unwrap();
    assert!(read == bytes, "by the kernel itself again");
}
