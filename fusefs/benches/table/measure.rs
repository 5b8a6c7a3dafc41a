//! Timing commands, and what processes cost.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Seconds that a shell line takes; it must succeed.
pub(crate) fn seconds(line: &str) -> f64 {
    let began = Instant::now();
    let output = Command::new("bash").args(["-c", line]).stdin(Stdio::null()).output().expect("start bash");
    let took = began.elapsed().as_secs_f64();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    took
}

/// What a shell line prints; it must succeed.
pub(crate) fn output(line: &str) -> String {
    let output = Command::new("bash").args(["-c", line]).stdin(Stdio::null()).output().expect("start bash");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// CPU seconds, user and system, that a process has used.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process that runs");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name in brackets").1.split_whitespace().collect();
    let ticks: f64 = [11, 12].iter().map(|index| fields[*index].parse::<f64>().expect("ticks")).sum();
    // Linux shows 100 ticks a second to user space on every architecture.
    ticks / 100.0
}

/// Most resident memory that a process has had, in MiB.
pub(crate) fn peak_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process that runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("KiB") / 1024.0
}

/// Until these processes have done nothing for a while, so that what one of them has put off is no work in another's time.
pub(crate) fn rest(pids: &[u32]) {
    const LOOK_EVERY: Duration = Duration::from_millis(500);
    const IDLE_SECONDS: f64 = 0.02;
    const IDLE_LOOKS: usize = 3;
    const LONGEST: Duration = Duration::from_secs(30);
    let used = || pids.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>();
    let (began, mut idle, mut before) = (Instant::now(), 0, used());
    while idle < IDLE_LOOKS && began.elapsed() < LONGEST {
        std::thread::sleep(LOOK_EVERY);
        let now = used();
        idle = if now - before <= IDLE_SECONDS { idle + 1 } else { 0 };
        before = now;
    }
}

/// Before every figure, whosever it is: nothing waits to be written to the disk, and the page cache is full,
/// as on any machine that has run for a while. Free memory is no fair start: a hypervisor takes it back, and
/// its first touch then costs whoever happens to need it up to two seconds a GiB.
pub(crate) fn settle() {
    seconds("sync");
    let free = free_bytes();
    let mut holes = SPARSE.lock().expect("nobody panicked with it");
    let (file, at) = holes.get_or_insert_with(|| {
        let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("make a file");
        file.set_len(SPARSE_BYTES).expect("a hole takes no room");
        (file, 0)
    });
    let mut block = vec![0; 1 << 20];
    let until = *at + free.saturating_sub(LEFT_FREE);
    while *at < until {
        file.read_exact_at(&mut block, *at).expect("read a hole");
        *at += block.len() as u64;
    }
}

/// A file of one hole, which fills the page cache and takes no disk; each byte is read once.
static SPARSE: Mutex<Option<(File, u64)>> = Mutex::new(None);
const SPARSE_BYTES: u64 = 1 << 43;
/// What the kernel keeps free by itself anyway, roughly.
const LEFT_FREE: u64 = 256 << 20;

fn free_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let line = text.lines().find(|line| line.starts_with("MemFree:")).expect("MemFree");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") * 1024
}

/// Have the kernel forget names and attributes, of whatever file system.
pub(crate) fn forget_names() {
    seconds("sync");
    std::fs::write("/proc/sys/vm/drop_caches", "2").expect("drop the kernel's caches, as root");
}

/// Read a local file once so that it is in the page cache.
pub(crate) fn preload(path: &Path) {
    seconds(&format!("cat '{}' > /dev/null", path.display()));
}
