//! **PURE.** How much the cache may take now.
//!
//! Invariant: never more than its size, and never so much that less than the floor stays free on the disk.

/// What bounds the cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes, from the configuration.
    pub(super) size: u64,
    /// Share of the disk that stays free, 0 to 1.
    pub(super) free_space_ratio: f64,
    /// And at least so many bytes of it.
    pub(super) spare_bytes: u64,
}

/// What the disk was when somebody looked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk {
    pub(super) total: u64,
    /// Bytes that a person may still use.
    pub(super) free: u64,
    /// What the cache took then.
    pub(super) used_then: u64,
}

impl Bounds {
    /// Bytes that the cache may take.
    pub(super) fn limit(&self, disk: Disk) -> u64 {
        let ratio = self.free_space_ratio.clamp(0.0, 1.0);
        // A share of a disk needs no more than f64's 53 bits.
        let floor = (disk.total as f64 * ratio).min(disk.total as f64).max(0.0);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and total, which is a u64"
        )]
        let floor = (floor as u64).max(self.spare_bytes);
        let by_disk = disk.used_then.saturating_add(disk.free).saturating_sub(floor);
        self.size.min(by_disk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_of_size_and_what_the_floor_leaves() {
        let bounds = Bounds { size: 1_000, free_space_ratio: 0.1, spare_bytes: 0 };
        assert_eq!(bounds.limit(Disk { total: 100_000, free: 50_000, used_then: 0 }), 1_000);
        assert_eq!(bounds.limit(Disk { total: 100_000, free: 10_300, used_then: 200 }), 500);
    }

    #[test]
    fn a_disk_below_its_floor_takes_back_what_is_cached() {
        let bounds = Bounds { size: 1_000, free_space_ratio: 0.1, spare_bytes: 0 };
        assert_eq!(bounds.limit(Disk { total: 100_000, free: 9_500, used_then: 800 }), 300);
        assert_eq!(bounds.limit(Disk { total: 100_000, free: 0, used_then: 800 }), 0);
    }

    #[test]
    fn no_ratio_panics() {
        for free_space_ratio in [f64::NAN, f64::INFINITY, -1.0, 7.0] {
            let _ = Bounds { size: 1, free_space_ratio, spare_bytes: 0 }.limit(Disk {
                total: u64::MAX,
                free: 5,
                used_then: 1,
            });
        }
    }
}
