//! The same work in three mounts: swarmfs, sshfs, and a memory-only file system.
//!
//! In each round each of them is mounted anew and has its turn, in another order than the round before.

use std::path::Path;
use std::time::Instant;

use super::costs::Costs;
use super::harness::swarm::Mounted;
use super::harness::{MountOptions, Swarm};
use super::measure::{rest, seconds, settle};
use super::memory_fs;
use super::report::{Report, median, ratio, spread};
use super::sshfs::Sshd;

/// Seeders of a contest, each with a replica of everything.
pub(crate) const SEEDERS: u32 = 2;

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Swarmfs,
    Sshfs,
    Memory,
}

impl Who {
    pub(crate) const ALL: [Self; 3] = [Self::Swarmfs, Self::Sshfs, Self::Memory];

    /// All of them, another one first in each round.
    pub(crate) fn in_round(round: usize) -> [Self; 3] {
        let mut order = Self::ALL;
        order.rotate_left(round % Self::ALL.len());
        order
    }
}

/// A swarm of two seeders, an sshd, and what their mounts took so far.
pub(crate) struct Contest {
    pub(crate) swarm: Swarm,
    sshd: Sshd,
    results: Vec<Work>,
}

/// One row: what each took, in the order of [`Who::ALL`].
struct Work {
    name: String,
    /// How much was done each time.
    amount: f64,
    seconds: [Vec<f64>; 3],
    /// Of swarmfs.
    costs: Vec<Costs>,
}

/// One mount's turn.
pub(crate) struct Turn<'a> {
    pub(crate) who: Who,
    /// The swarm and the mount, if it is swarmfs's turn.
    pub(crate) swarm: Option<(&'a Swarm, &'a Mounted)>,
    results: &'a mut Vec<Work>,
}

/// In what a row is shown.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shown {
    /// Amount a second.
    Rate,
    Seconds,
    /// Milliseconds for each of the amount.
    MillisecondsEach,
}

impl Contest {
    pub(crate) fn start() -> Self {
        let swarm = Swarm::start(SEEDERS as usize);
        let sshd = Sshd::start(&swarm.scratch("sshd"));
        Self { swarm, sshd, results: Vec::new() }
    }

    /// Give each its turn, at a folder of its own mount that is empty.
    pub(crate) fn round(&mut self, round: usize, mut work: impl FnMut(&mut Turn<'_>, &Path)) {
        for who in Who::in_round(round) {
            self.mounted(who, &format!("round-{round}"), &mut work);
        }
    }

    /// One turn, at the folder of this name. What lies in it stays for a later turn of the same name, but in memory.
    pub(crate) fn mounted(&mut self, who: Who, name: &str, work: &mut impl FnMut(&mut Turn<'_>, &Path)) {
        let Self { swarm, sshd, results } = self;
        let seeders = swarm.seeders.iter().map(|seeder| seeder.pid());
        rest(&seeders.chain([swarm.tracker.pid()]).collect::<Vec<_>>());
        let mut run = |root: &Path, swarm: Option<(&Swarm, &Mounted)>| {
            let folder = root.join(name);
            std::fs::create_dir_all(&folder).expect("make a folder in a mount");
            work(&mut Turn { who, swarm, results }, &folder);
        };
        match who {
            Who::Swarmfs => {
                let mut mount = swarm.mount_with(MountOptions { local_reads: true, ..MountOptions::default() });
                run(&mount.folder, Some((swarm, &mount)));
                // Ended in order: whatever it may still have to do is no work for the next one's time.
                mount.stop();
            }
            Who::Sshfs => {
                let (remote, folder) = (swarm.scratch("remote"), swarm.scratch("ssh"));
                std::fs::create_dir_all(&remote).expect("make what sshd serves");
                let mounted = sshd.mount(&remote, &folder);
                run(&folder, None);
                drop(mounted);
            }
            Who::Memory => {
                let folder = swarm.scratch("memory");
                let session = memory_fs::mount_writable(&folder);
                run(&folder, None);
                session.umount_and_join().expect("unmount: nobody uses it any more");
            }
        }
    }

    /// A section with a row for each work so far.
    pub(crate) fn show(&self, report: &mut Report, title: &str, shown: Shown, digits: usize, goal: &str) {
        report.section(title, &COLUMNS);
        self.rows(report, shown, digits, goal);
    }

    /// The rows alone.
    pub(crate) fn rows(&self, report: &mut Report, shown: Shown, digits: usize, goal: &str) {
        for work in &self.results {
            let [ours, ssh, memory] = &work.seconds;
            let figures = |seconds: &[f64]| match shown {
                Shown::Rate => spread(&seconds.iter().map(|took| work.amount / took).collect::<Vec<_>>(), digits),
                Shown::Seconds => spread(seconds, digits),
                Shown::MillisecondsEach => {
                    spread(&seconds.iter().map(|took| took * 1e3 / work.amount).collect::<Vec<_>>(), digits)
                }
            };
            let cpu = |pick: fn(&Costs) -> f64| median(&work.costs.iter().map(pick).collect::<Vec<_>>());
            report.row(&[
                work.name.clone(),
                figures(ours),
                figures(ssh),
                figures(memory),
                // Both are ratios of speeds.
                format!("{:.2}", ratio(ssh, ours)),
                format!("{:.2}", ratio(memory, ours)),
                goal.to_owned(),
                format!("{:.2}", cpu(|costs| costs.mount_cpu)),
                format!("{:.2}", cpu(|costs| costs.seeders_cpu)),
                format!("{:.2}", cpu(|costs| costs.tracker_cpu)),
            ]);
        }
    }
}

/// Columns of a section of contests.
pub(crate) const COLUMNS: [&str; 10] = [
    "work",
    "swarmfs",
    "sshfs",
    "memory-only FUSE",
    "speed ÷ sshfs",
    "speed ÷ memory-only",
    "goal, ÷ sshfs",
    "CPU seconds: mount",
    "both seeders",
    "tracker",
];

impl Turn<'_> {
    /// Take the time of a shell line that does `amount` of this work.
    pub(crate) fn time_line(&mut self, name: &str, amount: f64, line: &str) {
        self.time(name, amount, || {
            seconds(line);
        });
    }

    /// Take the time of `amount` of this work.
    pub(crate) fn time(&mut self, name: &str, amount: f64, work: impl FnOnce()) {
        settle();
        let before = self.swarm.map(|(swarm, mount)| Costs::now(swarm, mount));
        let began = Instant::now();
        work();
        let took = began.elapsed().as_secs_f64();
        let costs = self.swarm.map(|(swarm, mount)| Costs::now(swarm, mount));
        let at = self.results.iter().position(|work| work.name == name).unwrap_or_else(|| {
            let work = Work { name: name.to_owned(), amount, seconds: Default::default(), costs: Vec::new() };
            self.results.push(work);
            self.results.len() - 1
        });
        self.results[at].seconds[self.who as usize].push(took);
        if let (Some(before), Some(after)) = (before, costs) {
            self.results[at].costs.push(after.since(&before));
        }
    }
}
