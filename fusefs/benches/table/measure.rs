//! Timing commands, and what processes cost.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Seconds that a shell line takes; it must succeed.
pub(crate) fn seconds(line: &str) -> f64 {
    let began = Instant::now();
    let output = Command::new("bash").args(["-c", line]).stdin(Stdio::null()).output().unwrap();
    let took = began.elapsed().as_secs_f64();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    took
}

/// What a shell line prints; it must succeed.
pub(crate) fn output(line: &str) -> String {
    let output = Command::new("bash").args(["-c", line]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// CPU seconds, user and system, that a process has used.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = [11, 12].iter().map(|index| fields[*index].parse::<f64>().unwrap()).sum();
    // Linux shows 100 ticks a second to user space on every architecture.
    ticks / 100.0
}

/// Most resident memory that a process has had, in MiB.
pub(crate) fn peak_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Drop page cache of files below `folder` only by evicting what the kernel holds for a mount: it is
/// unmounted instead, so there is nothing to do here but to settle the disk.
pub(crate) fn settle() {
    seconds("sync");
}

/// Read a local file once so that it is in the page cache.
pub(crate) fn preload(path: &Path) {
    seconds(&format!("cat '{}' > /dev/null", path.display()));
}
