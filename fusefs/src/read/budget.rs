//! One memory budget for everything that was fetched and not yet read.
//!
//! Invariant: `used` is the sum of all grants that live. What is read ahead asks first and may be refused;
//! what a reader waits for is granted always, so `used` may pass the limit by what the kernel has in flight.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Largest budget that is chosen without being asked.
const LARGEST: u64 = 256 << 20;
/// Share of the memory that the process may use: a quarter.
const SHARE: u64 = 4;

/// Bytes that may wait in memory.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: u64,
    used: AtomicU64,
}

/// Some of the budget; given back when dropped.
#[derive(Debug)]
pub(super) struct Grant {
    budget: Arc<MemoryBudget>,
    bytes: u64,
}

impl MemoryBudget {
    /// Of `limit` bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0) })
    }

    /// 256 MiB, or a quarter of what this process may use where that is less.
    pub fn default_limit() -> u64 {
        let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_of(&text)).unwrap_or(u64::MAX);
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let group = group_limits(&own).filter_map(|path| limit_in(&fs::read_to_string(path).ok()?)).min();
        LARGEST.min(machine.min(group.unwrap_or(u64::MAX)) / SHARE)
    }

    /// What it was made with.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes granted now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether `bytes` more fit.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.used().saturating_add(bytes) <= self.limit
    }

    /// `bytes` more, whether they fit or not.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Grant {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Grant { budget: self.clone(), bytes }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A limit as cgroups write it; `max` is none.
fn limit_in(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Files that may say how much memory the groups of `/proc/self/cgroup` may use: of the group and of all
/// above it, in version 2 and 1. In a container the group's own path often is not visible but its root is.
fn group_limits(own: &str) -> impl Iterator<Item = std::path::PathBuf> {
    let mut files = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|one| one == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let group = Path::new(path.trim_start_matches('/'));
        files.extend(group.ancestors().map(|above| Path::new(root).join(above).join(name)));
    }
    files.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_come_back() {
        let budget = MemoryBudget::new(100);
        let first = budget.take(60);
        assert!(budget.has_room(40) && !budget.has_room(41));
        let second = budget.take(60);
        assert_eq!(budget.used(), 120);
        drop((first, second));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn groups_of_both_versions_are_looked_at_up_to_their_roots() {
        let two: Vec<_> = group_limits("0::/system.slice/swarmfs.service\n").collect();
        assert_eq!(two.len(), 3);
        assert_eq!(two[0], Path::new("/sys/fs/cgroup/system.slice/swarmfs.service/memory.max"));
        assert_eq!(two[2], Path::new("/sys/fs/cgroup/memory.max"));
        let one: Vec<_> = group_limits("5:cpu:/a\n4:memory:/docker/x\n").collect();
        assert_eq!(one[0], Path::new("/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes"));
        assert_eq!(one.len(), 3);
        assert_eq!(group_limits("nonsense").count(), 0);
    }

    #[test]
    fn a_limit_is_a_number_or_none() {
        assert_eq!(limit_in("max\n"), None);
        assert_eq!(limit_in("536870912\n"), Some(512 << 20));
        assert_eq!(total_of("MemFree: 1 kB\nMemTotal:   2048 kB\n"), Some(2 << 20));
        let limit = MemoryBudget::default_limit();
        assert!(limit > 0 && limit <= LARGEST);
    }
}
