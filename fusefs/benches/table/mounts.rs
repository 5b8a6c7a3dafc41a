//! What every mount of the table is given alike.

use std::os::linux::fs::MetadataExt;
use std::path::Path;

/// Let the kernel read ahead 1 MiB at a mount, as ours does (root).
pub(crate) fn read_ahead_1_mib(folder: &Path) {
    let device = std::fs::metadata(folder).expect("a folder that is mounted").st_dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), "1024")
        .expect("set the readahead of a mount, as root");
}
