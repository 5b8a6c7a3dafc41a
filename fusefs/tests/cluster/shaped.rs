//! Machines with real links: network namespaces, one for each, whose links are limited with `tc tbf`.
//!
//! Soak only: what is shown here are shares of a link's rate.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::process::{Daemon, binary, force_unmount};
use crate::harness::{assert_same_file, eventually, only_in_soak, write_random};

const MIB: u64 = 1024 * 1024;

fn run(line: &str) {
    let mut words = line.split_whitespace();
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{line}");
}

/// A switch and the machines on it; all gone when dropped.
struct Network {
    hosts: Vec<String>,
    prefix: String,
}

impl Network {
    fn new() -> Self {
        let prefix = format!("sw{}", std::process::id() % 10_000);
        run(&format!("ip netns add {prefix}hub"));
        let network = Self { hosts: vec![format!("{prefix}hub")], prefix };
        run(&format!("ip -n {0}hub link add br0 type bridge", network.prefix));
        run(&format!("ip -n {0}hub link set br0 up", network.prefix));
        network
    }

    /// Add machine 10.77.0.`number`, whose sending is limited to `mbit`. Returns its namespace.
    fn add(&mut self, number: u8, mbit: Option<u32>) -> String {
        let (hub, host) = (format!("{}hub", self.prefix), format!("{}n{number}", self.prefix));
        run(&format!("ip netns add {host}"));
        self.hosts.push(host.clone());
        run(&format!("ip -n {host} link add eth0 type veth peer name p{number} netns {hub}"));
        run(&format!("ip -n {hub} link set p{number} master br0 up"));
        run(&format!("ip -n {host} addr add 10.77.0.{number}/24 dev eth0"));
        run(&format!("ip -n {host} link set eth0 up"));
        run(&format!("ip -n {host} link set lo up"));
        if let Some(mbit) = mbit {
            run(&format!("tc -n {host} qdisc add dev eth0 root tbf rate {mbit}mbit burst 64kb latency 50ms"));
        }
        host
    }

    fn limit(&self, number: u8, mbit: u32) {
        let host = format!("{}n{number}", self.prefix);
        run(&format!("tc -n {host} qdisc replace dev eth0 root tbf rate {mbit}mbit burst 64kb latency 50ms"));
    }

    fn unlimit(&self, number: u8) {
        let host = format!("{}n{number}", self.prefix);
        Command::new("tc").args(["-n", &host, "qdisc", "del", "dev", "eth0", "root"]).status().unwrap();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            Command::new("ip").args(["netns", "del", host]).status().ok();
        }
    }
}

/// A tracker, a reader and four seeders, each on a machine of its own.
struct ShapedSwarm {
    mounts: Vec<(Daemon, PathBuf)>,
    mounts_made: usize,
    seeders: Vec<Daemon>,
    _tracker: Daemon,
    reader: String,
    network: Network,
    folder: TempDir,
}

const TRACKER: &str = "swarm://10.77.0.1:7070";

impl ShapedSwarm {
    fn start() -> Self {
        let folder = TempDir::with_prefix_in("shaped-", env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut network = Network::new();
        let data = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let host = network.add(1, None);
        let arguments =
            words(&["--listen", "10.77.0.1:7070", "--data", &data("tracker"), "--admin-listen", "127.0.0.1:9000"]);
        let mut tracker =
            Daemon::new(folder.path(), "tracker", "swarm-tracker", arguments, "127.0.0.1:9000".to_owned())
                .in_namespace(&host);
        tracker.start();
        let mut seeders = Vec::new();
        for number in 11..15u8 {
            let host = network.add(number, None);
            let listen = format!("10.77.0.{number}:7080");
            let arguments = words(&[
                "--tracker",
                TRACKER,
                "--listen",
                &listen,
                "--data",
                &data(&format!("seeder-{number}")),
                "--admin-listen",
                "127.0.0.1:9000",
            ]);
            let name = format!("seeder-{number}");
            let mut seeder = Daemon::new(folder.path(), &name, "swarm-seeder", arguments, "127.0.0.1:9000".to_owned())
                .in_namespace(&host);
            seeder.start();
            seeders.push(seeder);
        }
        let reader = network.add(2, None);
        let swarm = Self { mounts: Vec::new(), mounts_made: 0, seeders, _tracker: tracker, reader, network, folder };
        eventually("four seeders live", Duration::from_secs(20), || {
            let peers = swarm.cli(&["peers", "--json"]);
            peers.matches("\"live\"").count() == 4
        });
        swarm
    }

    fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.reader))
            .arg(binary("swarmfs"))
            .args(arguments)
            .env("SWARM_TRACKER", TRACKER)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn put(&self, length: u64, name: &str) -> PathBuf {
        let source = self.folder.path().join(name);
        write_random(&source, length, length);
        (11..15).for_each(|number| self.network.unlimit(number));
        self.cli(&["put", "--replicas", "4", &source.to_string_lossy(), &format!("/{name}")]);
        source
    }

    /// A mount with an empty cache.
    fn mount(&mut self) -> PathBuf {
        let index = self.mounts_made;
        self.mounts_made += 1;
        let folder = self.folder.path().join(format!("mount-{index}"));
        std::fs::create_dir_all(&folder).unwrap();
        let cache = self.folder.path().join(format!("cache-{index}"));
        let admin = format!("127.0.0.1:{}", 9100 + index);
        let arguments = [
            "mount",
            "--foreground",
            "--admin-listen",
            &admin,
            "--cache-dir",
            &cache.to_string_lossy(),
            TRACKER,
            &folder.to_string_lossy(),
        ]
        .map(str::to_owned)
        .to_vec();
        let name = format!("mount-{index}");
        let mut daemon = Daemon::new(self.folder.path(), &name, "swarmfs", arguments, admin).in_namespace(&self.reader);
        daemon.start();
        self.mounts.push((daemon, folder.clone()));
        folder
    }

    /// Read `name` through a fresh mount; its rate as a share of `mbit`, and the wait for the first byte.
    fn measure(&mut self, name: &str, mbit: &[u32]) -> (f64, Duration) {
        // An earlier mount would serve what it has cached, over a link without a limit.
        for (mut daemon, folder) in self.mounts.drain(..) {
            daemon.stop();
            force_unmount(&folder);
        }
        // Nothing of a new mount is in the kernel's caches, and what the seeders hold stays there: a hypervisor takes back what
        // is dropped, which stops the whole machine for up to a second, in the middle of the read.
        run("sync");
        let folder = self.mount();
        std::fs::metadata(folder.join(name)).unwrap();
        for (number, rate) in (11..15u8).zip(mbit) {
            self.network.limit(number, *rate);
        }
        let began = Instant::now();
        let mut file = File::open(folder.join(name)).unwrap();
        let mut block = vec![0; 1 << 20];
        let mut length = file.read(&mut block[..4096]).unwrap() as u64;
        let first = began.elapsed();
        loop {
            match file.read(&mut block).unwrap() {
                0 => break,
                count => length += count as u64,
            }
        }
        let took = began.elapsed();
        (11..15).for_each(|number| self.network.unlimit(number));
        assert_eq!(length, std::fs::metadata(self.folder.path().join(name)).unwrap().len());
        assert_same_file(&self.folder.path().join(name), &folder.join(name));
        let rate = length as f64 * 8.0 / took.as_secs_f64() / 1e6;
        (rate / f64::from(mbit.iter().sum::<u32>()), first)
    }
}

impl Drop for ShapedSwarm {
    fn drop(&mut self) {
        for (daemon, folder) in &mut self.mounts {
            daemon.kill();
            force_unmount(folder);
        }
        self.seeders.iter_mut().for_each(Daemon::kill);
    }
}

fn is_root() -> bool {
    Path::new("/proc/self").exists() && rustix::process::geteuid().is_root()
}

#[test]
fn one_reader_fills_the_links_of_four_seeders() {
    if only_in_soak("the shaped networks") {
        return;
    }
    assert!(is_root(), "network namespaces need root");
    let mut swarm = ShapedSwarm::start();
    swarm.put(200 * MIB, "200MiB");
    swarm.put(1024 * MIB, "1GiB");
    let mut failures = Vec::new();
    for (name, mbit, want) in [
        ("200MiB", [100, 100, 100, 100], 0.90),
        ("200MiB", [100, 100, 50, 10], 0.90),
        ("1GiB", [100, 100, 100, 100], 0.93),
    ] {
        let (share, first) = swarm.measure(name, &mbit);
        eprintln!("{name} over {mbit:?} Mbit/s: {:.1} % of the sum, first byte after {first:?}", share * 100.0);
        if share < want {
            failures.push(format!("{name} over {mbit:?}: {:.1} % < {:.0} %", share * 100.0, want * 100.0));
        }
        if first > Duration::from_millis(50) {
            failures.push(format!("{name} over {mbit:?}: first byte after {first:?}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
