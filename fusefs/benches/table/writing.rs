//! Writing large files in a mount: with fsync, and a little in the middle of one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};

use super::contest::{Contest, Shown, Who};
use super::harness::{Swarm, write_random};
use super::measure::seconds;
use super::report::{Report, spread};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
/// What is overwritten, so often in a turn.
const PAGE: usize = 4_096;
const OVERWRITES: u64 = 16;
/// What a replica may have to move for one of them.
const MOST_KIB_MOVED: u32 = 64;

pub(crate) fn run(report: &mut Report) {
    if report.wants("write with fsync") {
        with_fsync(report);
    }
    if report.wants("overwrite") {
        overwrite(report);
    }
}

fn with_fsync(report: &mut Report) {
    let bytes = report.shrunk(GIB);
    let mut contest = Contest::start();
    for round in 0..report.rounds {
        for (index, (name, line)) in [
            ("`dd bs=1M conv=fsync`", "dd bs=1M conv=fsync status=none if={from} of={to}"),
            ("`cp`, then `sync` of the file", "cp {from} {to} && sync {to}"),
        ]
        .into_iter()
        .enumerate()
        {
            // Other bytes each time: what the swarm has already is not sent again.
            let source = in_memory();
            let from = source.path().join("source");
            write_random(&from, bytes, (round * 2 + index) as u64 + 100);
            contest.round(round, |turn, folder| {
                let to = folder.join("large");
                let line = line.replace("{from}", &from.to_string_lossy()).replace("{to}", &to.to_string_lossy());
                turn.time_line(name, bytes as f64 / MIB as f64, &line);
                std::fs::remove_file(to).expect("remove what was written");
            });
        }
    }
    let title = format!("Write of {} with fsync, two replicas (sshfs: one), MiB/s", shown(bytes));
    contest.show(report, &title, Shown::Rate, 0, "≥ 1, aim 1.5");
}

fn overwrite(report: &mut Report) {
    let bytes = report.shrunk(GIB);
    let mut contest = Contest::start();
    let source = in_memory();
    let from = source.path().join("source");
    write_random(&from, bytes, 99);
    let there = |folder: &Path| {
        let to = folder.join("large");
        if !to.exists() {
            seconds(&format!("cp {} {to} && sync {to}", from.display(), to = to.display()));
        }
        to
    };
    for who in [Who::Swarmfs, Who::Sshfs] {
        contest.mounted(who, "overwrite", &mut |_, folder| drop(there(folder)));
    }
    let mut moved = vec![];
    for round in 0..report.rounds {
        for who in Who::in_round(round) {
            contest.mounted(who, "overwrite", &mut |turn, folder| {
                let file = File::options().write(true).open(there(folder)).expect("open what was written");
                let before = turn.swarm.map(|(swarm, _)| moved_bytes(swarm));
                let mut rng = SmallRng::seed_from_u64(round as u64);
                turn.time("4 KiB anywhere, `fsync`", OVERWRITES as f64, || {
                    for _ in 0..OVERWRITES {
                        let mut page = [0; PAGE];
                        rng.fill_bytes(&mut page);
                        let at = rng.random_range(0..bytes / PAGE as u64) * PAGE as u64;
                        file.write_all_at(&page, at).and_then(|()| file.sync_all()).expect("overwrite");
                    }
                });
                if let (Some(before), Some((swarm, _))) = (before, turn.swarm) {
                    let grown = moved_bytes(swarm).into_iter().zip(before).map(|(after, before)| after - before);
                    moved.push(grown.fold(0.0, f64::max) / OVERWRITES as f64 / 1024.0);
                }
            });
        }
    }
    let title = format!("4 KiB overwritten with fsync in {}, two replicas (sshfs: one), ms each", shown(bytes));
    contest.show(report, &title, Shown::MillisecondsEach, 2, "");
    report.section(
        "What a replica moves for one such overwrite, KiB",
        &["stored and served by the busier seeder", "goal"],
    );
    report.row(&[spread(&moved, 1), format!("≤ {MOST_KIB_MOVED}")]);
}

/// Bytes of chunks that each seeder took and gave since it started.
fn moved_bytes(swarm: &Swarm) -> Vec<f64> {
    let of = |metrics: &super::harness::metrics::Metrics| {
        metrics.sum("swarm_peer_stored_bytes_total") + metrics.sum("swarm_peer_served_bytes_total")
    };
    swarm.seeders.iter().map(|seeder| of(&seeder.metrics())).collect()
}

/// A folder in memory for what is written from: its disk is none of the figures.
pub(crate) fn in_memory() -> tempfile::TempDir {
    tempfile::TempDir::with_prefix_in("swarm-bench-", "/dev/shm").expect("make a folder in /dev/shm")
}

fn shown(bytes: u64) -> String {
    match bytes {
        GIB => "1 GiB".to_owned(),
        _ => format!("{} MiB", bytes / MIB),
    }
}
