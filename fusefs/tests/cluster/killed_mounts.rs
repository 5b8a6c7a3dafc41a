//! What a killed mount leaves behind is unmounted in time, and mounted over, whatever still uses it.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::process::binary;
use crate::harness::swarm::Mounted;
use crate::harness::{Swarm, eventually};

/// Far less than a call of a mount may take that waits for its tracker.
const IN_TIME: Duration = Duration::from_secs(8);

/// The state of each thread of a process that has this name.
fn states(pid: u32, thread: &str) -> Vec<char> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    let named = stats.filter(|stat| stat.contains(&format!("({thread})")));
    named.filter_map(|stat| stat.rsplit(')').next()?.trim_start().chars().next()).collect()
}

fn umount(folder: &Path) -> Output {
    let mut command = Command::new(binary("swarmfs"));
    command.arg("umount").arg(folder).stdin(Stdio::null()).output().unwrap()
}

/// A process that has a file of a mount open. Not this one: a program that is started by one that has a file open closes
/// it once more, and so would wait for the mount.
struct User(Child);

impl User {
    fn of(mount: &Mounted) -> Self {
        let file = mount.path("used");
        let script = "exec 3>\"$0\" && echo > \"$0.open\" && exec sleep 600";
        let user = Self(Command::new("sh").arg("-c").arg(script).arg(&file).stdin(Stdio::null()).spawn().unwrap());
        eventually("a file is open", Duration::from_secs(10), || mount.path("used.open").exists());
        user
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn is_mounted(folder: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == folder))
}

/// Kill a mount at a moment at which it cannot end: a thread of it waits in the kernel for its root, which somebody holds
/// who makes a file there, and waits for the mount. Returns who makes the file.
fn kill_where_it_hangs(swarm: &Swarm, mount: &mut Mounted) -> JoinHandle<std::io::Result<File>> {
    let pid = mount.daemon.pid();
    let making = (0..10).find_map(|_| make_where_it_hangs(swarm, mount)).expect("it never waited in the kernel");
    mount.daemon.signal("KILL");
    eventually("it is killed", Duration::from_secs(5), || states(pid, "swarmfs").contains(&'Z'));
    assert_eq!(states(pid, "tell-kernel"), ['D'], "it ended by itself: this shows nothing");
    making
}

/// Have a file made that the tracker, which is stopped, says nothing of, while the mount tells the kernel of names.
fn make_where_it_hangs(swarm: &Swarm, mount: &Mounted) -> Option<JoinHandle<std::io::Result<File>>> {
    let pid = mount.daemon.pid();
    let shown = || std::fs::read_dir(&mount.folder).map_or(0, Iterator::count);
    let before = shown();
    // Each name is told to the kernel twice, the second time a second after the first.
    let names: Vec<String> = (0..20).map(|_| format!("/{}", rand::random::<u64>())).collect();
    swarm.cli(&[&["mkdir"], &names.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
    eventually("the folder shows what others make", Duration::from_secs(10), || shown() > before);
    swarm.tracker.signal("STOP");
    let new = mount.path(&format!("new-{before}"));
    let making = std::thread::spawn(move || File::create(new));
    let began = Instant::now();
    while states(pid, "tell-kernel") != ['D'] {
        if began.elapsed() > Duration::from_secs(3) {
            // The kernel had been told of all of them by then.
            swarm.tracker.signal("CONT");
            drop(making.join().unwrap());
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Some(making)
}

#[test]
fn a_killed_mount_that_is_in_use_is_unmounted() {
    let mut swarm = Swarm::start(1);
    let mut mount = swarm.mount();
    let _user = User::of(&mount);
    mount.daemon.kill();
    let began = Instant::now();
    let output = umount(&mount.folder);
    assert!(output.status.success(), "{output:?}");
    assert!(began.elapsed() < IN_TIME && !is_mounted(&mount.folder));
}

#[test]
fn a_killed_mount_that_hangs_is_unmounted_and_so_ends() {
    let mut swarm = Swarm::start(1);
    let mut mount = swarm.mount();
    let _user = User::of(&mount);
    let making = kill_where_it_hangs(&swarm, &mut mount);
    let began = Instant::now();
    let output = umount(&mount.folder);
    assert!(output.status.success(), "{output:?}");
    assert!(began.elapsed() < IN_TIME && !is_mounted(&mount.folder));
    making.join().unwrap().expect_err("nobody made it");
    // Waits for its end.
    mount.daemon.kill();
    swarm.tracker.signal("CONT");
}

#[test]
fn a_killed_mount_that_hangs_is_mounted_over() {
    let mut swarm = Swarm::start(1);
    let mut mount = swarm.mount();
    let making = kill_where_it_hangs(&swarm, &mut mount);
    swarm.tracker.signal("CONT");
    let mut left = mount.daemon.take();
    // Its cache is free when it has ended, which the next one brings about, and waits for.
    mount.restart();
    assert!(std::fs::read_dir(&mount.folder).unwrap().next().is_some());
    making.join().unwrap().expect_err("nobody made it");
    left.wait().unwrap();
}
