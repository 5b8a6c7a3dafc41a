//! How the room of one disk is shared among seeders that all lie on it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use swarm_proto::settings::ByteCount;

/// Of what is free, so much is left to others.
const LEFT_FREE: u64 = 10;

/// Bytes that each seeder may keep: what it has, and an equal part of what may still be taken.
///
/// Shape: `total` is for all together; 0: nine tenths of what is free on the disk of `disk`.
pub(super) async fn shares(total: ByteCount, disk: &Path, folders: &[PathBuf]) -> Vec<ByteCount> {
    let (disk, folders, count) = (disk.to_owned(), folders.to_vec(), folders.len());
    let measured = tokio::task::spawn_blocking(move || {
        let used: Vec<u64> = folders.iter().map(|folder| used(folder)).collect();
        let free = rustix::fs::statvfs(&disk).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        (used, free.unwrap_or(0))
    })
    .await;
    let (used, free) = measured.unwrap_or_else(|_| (vec![0; count], 0));
    split(total.0, free, &used).into_iter().map(ByteCount).collect()
}

fn split(total: u64, free: u64, used: &[u64]) -> Vec<u64> {
    let parts = u64::try_from(used.len()).unwrap_or(u64::MAX).max(1);
    match total {
        // Never 0, which a seeder would take for "as much as there is".
        0 => used.iter().map(|used| (used + (free - free / LEFT_FREE) / parts).max(1)).collect(),
        total => vec![(total / parts).max(1); used.len()],
    }
}

/// Bytes that the files below a folder take on the disk.
fn used(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => used(&entry.path()),
            Ok(meta) => meta.blocks().saturating_mul(512),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_not_promised_twice() {
        assert_eq!(split(0, 1_000, &[0, 0, 0]), [300, 300, 300]);
        assert_eq!(split(0, 1_000, &[50, 0]), [500, 450]);
        assert_eq!(split(900, 10, &[50, 0, 0]), [300, 300, 300]);
        assert_eq!(split(0, 0, &[0]), [1]);
    }
}
