//! Reading: sequential, random, many small files, listings.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use super::costs::Costs;
use super::harness::swarm::Mounted;
use super::harness::{MountOptions, Swarm, write_random};
use super::measure::{output, preload, seconds, settle};
use super::memory_fs;
use super::report::{Report, median, ratio, spread};
use super::sshfs::Sshd;

const GIB: u64 = 1 << 30;

pub(crate) fn run(report: &mut Report) {
    let mut swarm = Swarm::start(3);
    let source = swarm.scratch("source");
    std::fs::create_dir_all(&source).expect("make the source's folder");
    let sshd = Sshd::start(&swarm.scratch("sshd"));
    if report.wants("sequential") || report.wants("random") || report.wants("warm") {
        write_random(&source.join("large"), GIB, 1);
        swarm.put(&source.join("large"), "/large", 2);
    }
    if report.wants("sequential") {
        sequential(report, &mut swarm, &sshd, &source);
    }
    if report.wants("warm") {
        warm(report, &mut swarm, &source);
    }
    if report.wants("random") {
        random(report, &mut swarm, &sshd, &source);
    }
    if report.wants("small files") {
        small_files(report, &mut swarm, &sshd, &source);
    }
    if report.wants("listing") {
        listing(report, &mut swarm, &sshd, &source);
    }
}

/// How bytes come to a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As they do by default on one machine: the mount reads the files that the seeders lend it.
    Beside,
    /// With `--no-local-reads`, as from other machines.
    Network,
}

/// A mount with an empty cache of its own.
fn cold_mount(swarm: &mut Swarm, way: Way) -> Mounted {
    swarm.mount_with(MountOptions { local_reads: way == Way::Beside, ..MountOptions::default() })
}

fn sequential(report: &mut Report, swarm: &mut Swarm, sshd: &Sshd, source: &Path) {
    report.section(
        "Cold sequential read of 1 GiB, MiB/s",
        &[
            "command",
            "swarmfs",
            "swarmfs over the network",
            "ceiling (memory-only FUSE)",
            "sshfs",
            "sshfs, 4 connections and 1 MiB readahead",
            "raw copy",
            "÷ ceiling",
            "÷ sshfs",
            "over the network ÷ sshfs",
        ],
    );
    let (mut costs, mut network_costs) = (vec![], vec![]);
    for command in ["dd bs=1M of=/dev/null status=none if=", "cat > /dev/null "] {
        let (mut ours, mut network, mut ceiling) = (vec![], vec![], vec![]);
        let (mut ssh, mut tuned, mut raw) = (vec![], vec![], vec![]);
        for round in 0..report.rounds {
            let mut ways = [(Way::Beside, &mut ours, &mut costs), (Way::Network, &mut network, &mut network_costs)];
            ways.rotate_left(round % 2);
            for (way, rates, costs) in ways {
                let mount = cold_mount(swarm, way);
                settle();
                let before = Costs::now(swarm, &mount);
                rates.push(1024.0 / seconds(&format!("{command}{}", mount.path("large").display())));
                costs.push(Costs::now(swarm, &mount).since(&before));
                discard(mount);
            }
            let folder = swarm.scratch(&format!("memory-{round}"));
            let session = memory_fs::mount(&folder, GIB);
            settle();
            ceiling.push(1024.0 / seconds(&format!("{command}{}", folder.join("large").display())));
            session.umount_and_join().expect("unmount: nobody uses it any more");
            preload(&source.join("large"));
            let folder = swarm.scratch("ssh");
            let read = |rates: &mut Vec<f64>, mounted| {
                settle();
                rates.push(1024.0 / seconds(&format!("{command}{}", folder.join("large").display())));
                drop(mounted);
            };
            read(&mut ssh, sshd.mount(source, &folder));
            read(&mut tuned, sshd.mount_tuned(source, &folder));
            let copy = swarm.scratch("copy");
            settle();
            raw.push(1024.0 / seconds(&format!("cp {} {}", source.join("large").display(), copy.display())));
            std::fs::remove_file(copy).expect("remove what cp made");
        }
        report.row(&[
            format!("`{}`", command.split_whitespace().next().unwrap_or_default()),
            spread(&ours, 0),
            spread(&network, 0),
            spread(&ceiling, 0),
            spread(&ssh, 0),
            spread(&tuned, 0),
            spread(&raw, 0),
            format!("{:.2}", ratio(&ours, &ceiling)),
            format!("{:.2}", ratio(&ours, &ssh)),
            format!("{:.2}", ratio(&network, &ssh)),
        ]);
    }
    report.section(
        "What one cold GiB costs",
        &["process", "CPU seconds a GiB", "the same over the network", "peak memory MiB over all rounds"],
    );
    let of = |costs: &[Costs], pick: fn(&Costs) -> f64| median(&costs.iter().map(pick).collect::<Vec<_>>());
    let both: Vec<Costs> = costs.iter().chain(&network_costs).copied().collect();
    let mut row = |name: &str, cpu: fn(&Costs) -> f64, peak: fn(&Costs) -> f64| {
        let most = both.iter().map(peak).fold(0.0, f64::max);
        let [ours, network] = [&costs, &network_costs].map(|costs| format!("{:.2}", of(costs, cpu)));
        report.row(&[name.into(), ours, network, format!("{most:.0}")]);
    };
    row("swarmfs (mount)", |c| c.mount_cpu, |c| c.mount_peak);
    row("swarm-seeder, all three together; memory: the largest", |c| c.seeders_cpu, |c| c.seeders_peak);
    row("swarm-tracker", |c| c.tracker_cpu, |c| c.tracker_peak);
}

/// End a mount and delete its cache, so that the disk does not fill.
fn discard(mut mount: Mounted) {
    mount.stop();
    std::fs::remove_dir_all(&mount.cache).ok();
}

fn warm(report: &mut Report, swarm: &mut Swarm, source: &Path) {
    report.section("Warm sequential read of 1 GiB (`dd bs=1M`), MiB/s", &["state", "swarmfs", "local file", "ratio"]);
    let mount = cold_mount(swarm, Way::Beside);
    let (ours, local) = (mount.path("large"), source.join("large"));
    let read = |path: &Path| 1024.0 / seconds(&format!("dd bs=1M of=/dev/null status=none if={}", path.display()));
    read(&ours);
    read(&ours);
    // The cache is written beside the reads; a settled file is opened with passthrough.
    std::thread::sleep(std::time::Duration::from_secs(2));
    read(&ours);
    read(&local);
    let (mut a, mut b) = (vec![], vec![]);
    for _ in 0..report.rounds {
        a.push(read(&ours));
        b.push(read(&local));
    }
    report.row(&["in the page cache".into(), spread(&a, 0), spread(&b, 0), format!("{:.2}", ratio(&a, &b))]);
    discard(mount);
}

fn random(report: &mut Report, swarm: &mut Swarm, sshd: &Sshd, source: &Path) {
    report.section(
        "Cold random reads of 4 KiB",
        &[
            "jobs",
            "swarmfs IOPS",
            "over the network",
            "sshfs IOPS",
            "÷ sshfs",
            "over the network ÷ sshfs",
            "KiB moved a read",
        ],
    );
    for jobs in [1u32, 4] {
        let reads = 2_000 / jobs;
        let fio = |path: &Path, seed: usize| {
            let line = format!(
                "fio --name=r --filename={} --readonly --rw=randread --bs=4k --ioengine=psync --numjobs={jobs} --thread \
                 --number_ios={reads} --norandommap --randseed={seed} --allrandrepeat=0 --invalidate=0 --group_reporting --output-format=json",
                path.display()
            );
            let got: serde_json::Value = serde_json::from_str(&output(&line)).expect("fio writes JSON");
            let figure = |name: &str| got["jobs"][0]["read"][name].as_f64().expect("fio counts what it read");
            (figure("iops"), figure("total_ios"))
        };
        let (mut ours, mut network, mut ssh, mut moved) = (vec![], vec![], vec![], vec![]);
        for round in 0..report.rounds {
            let mut ways = [(Way::Beside, &mut ours), (Way::Network, &mut network)];
            ways.rotate_left(round % 2);
            for (way, rates) in ways {
                let mount = cold_mount(swarm, way);
                let before = mount.daemon.metrics().sum("swarm_fetch_received_bytes_total");
                let (iops, count) = fio(&mount.path("large"), round);
                rates.push(iops);
                moved.push((mount.daemon.metrics().sum("swarm_fetch_received_bytes_total") - before) / count / 1024.0);
                discard(mount);
            }
            let folder = swarm.scratch("ssh");
            let mounted = sshd.mount(source, &folder);
            ssh.push(fio(&folder.join("large"), round).0);
            drop(mounted);
        }
        report.row(&[
            jobs.to_string(),
            spread(&ours, 0),
            spread(&network, 0),
            spread(&ssh, 0),
            format!("{:.2}", ratio(&ours, &ssh)),
            format!("{:.2}", ratio(&network, &ssh)),
            spread(&moved, 1),
        ]);
    }
    report.section("Time to the first byte after `open`, cold, ms", &["swarmfs", "over the network", "sshfs"]);
    let first = |path: &Path| {
        let began = Instant::now();
        let mut byte = [0];
        File::open(path).and_then(|mut file| file.read_exact(&mut byte)).expect("read a byte of a file that was put");
        began.elapsed().as_secs_f64() * 1e3
    };
    let (mut ours, mut network, mut ssh) = (vec![], vec![], vec![]);
    for _ in 0..report.rounds {
        for (way, times) in [(Way::Beside, &mut ours), (Way::Network, &mut network)] {
            let mount = cold_mount(swarm, way);
            times.push(first(&mount.path("large")));
            discard(mount);
        }
        let folder = swarm.scratch("ssh");
        let mounted = sshd.mount(source, &folder);
        ssh.push(first(&folder.join("large")));
        drop(mounted);
    }
    report.row(&[spread(&ours, 1), spread(&network, 1), spread(&ssh, 1)]);
}

fn small_files(report: &mut Report, swarm: &mut Swarm, sshd: &Sshd, source: &Path) {
    let tree = source.join("small");
    for index in 0..2_000 {
        write_random(&tree.join(format!("{:02}/{index:04}", index % 20)), 16 * 1024, index);
    }
    swarm.put(&tree, "/small", 2);
    report.section("`tar` of 2,000 files of 16 KiB, cold, seconds", &["swarmfs", "sshfs", "sshfs ÷ swarmfs"]);
    let (mut ours, mut ssh) = (vec![], vec![]);
    for _ in 0..report.rounds {
        let tar = |folder: &Path| seconds(&format!("tar -C {} -cf - . | cat > /dev/null", folder.display()));
        let mount = cold_mount(swarm, Way::Beside);
        ours.push(tar(&mount.path("small")));
        // Not discarded: ext4 makes new files slowly for minutes after so many were deleted.
        drop(mount);
        let folder = swarm.scratch("ssh");
        let mounted = sshd.mount(source, &folder);
        ssh.push(tar(&folder.join("small")));
        drop(mounted);
    }
    report.row(&[spread(&ours, 2), spread(&ssh, 2), format!("{:.2}", ratio(&ssh, &ours))]);
}

fn listing(report: &mut Report, swarm: &mut Swarm, sshd: &Sshd, source: &Path) {
    let tree = source.join("many");
    for index in 0..10_000 {
        write_random(&tree.join(format!("{index:05}")), 100, index);
    }
    swarm.put(&tree, "/many", 2);
    report.section("`ls -lR` of 10,000 entries, seconds", &["state", "swarmfs", "sshfs"]);
    let list = |folder: &Path| seconds(&format!("ls -lR {} > /dev/null", folder.display()));
    let (mut cold, mut warm, mut ssh_cold, mut ssh_warm) = (vec![], vec![], vec![], vec![]);
    for _ in 0..report.rounds {
        let mount = cold_mount(swarm, Way::Beside);
        cold.push(list(&mount.path("many")));
        warm.push(list(&mount.path("many")));
        discard(mount);
        let folder = swarm.scratch("ssh");
        let mounted = sshd.mount(source, &folder);
        ssh_cold.push(list(&folder.join("many")));
        ssh_warm.push(list(&folder.join("many")));
        drop(mounted);
    }
    report.row(&["cold".into(), spread(&cold, 2), spread(&ssh_cold, 2)]);
    report.row(&["warm".into(), spread(&warm, 2), spread(&ssh_warm, 2)]);
}
