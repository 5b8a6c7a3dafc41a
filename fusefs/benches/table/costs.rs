//! What the processes of a swarm used.

use super::harness::Swarm;
use super::harness::swarm::Mounted;
use super::measure::{cpu_seconds, peak_mib};

/// CPU used so far and the peak of memory, by process.
#[derive(Clone, Copy)]
pub(crate) struct Costs {
    pub(crate) mount_cpu: f64,
    pub(crate) seeders_cpu: f64,
    pub(crate) tracker_cpu: f64,
    pub(crate) mount_peak: f64,
    pub(crate) seeders_peak: f64,
    pub(crate) tracker_peak: f64,
}

impl Costs {
    pub(crate) fn now(swarm: &Swarm, mount: &Mounted) -> Self {
        let pids: Vec<u32> = swarm.seeders.iter().map(|seeder| seeder.pid()).collect();
        Self {
            mount_cpu: cpu_seconds(mount.daemon.pid()),
            seeders_cpu: pids.iter().map(|pid| cpu_seconds(*pid)).sum(),
            tracker_cpu: cpu_seconds(swarm.tracker.pid()),
            mount_peak: peak_mib(mount.daemon.pid()),
            seeders_peak: pids.iter().map(|pid| peak_mib(*pid)).fold(0.0, f64::max),
            tracker_peak: peak_mib(swarm.tracker.pid()),
        }
    }

    pub(crate) fn since(self, before: &Self) -> Self {
        Self {
            mount_cpu: self.mount_cpu - before.mount_cpu,
            seeders_cpu: self.seeders_cpu - before.seeders_cpu,
            tracker_cpu: self.tracker_cpu - before.tracker_cpu,
            ..self
        }
    }
}
