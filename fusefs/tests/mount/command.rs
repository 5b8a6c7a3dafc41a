//! `swarmfs mount` and `swarmfs umount` as processes.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use swarm_fusefs::mount::{status, table};

use super::swarm::{Swarm, eventually, run, start};

fn swarmfs(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swarmfs"));
    run(command.args(arguments).env_remove("SWARM_TRACKER")).unwrap()
}

fn exit_and_error(output: &Output) -> (i32, String) {
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Detached when dropped, whatever the test came to.
struct Detach<'a>(&'a Path);

impl Drop for Detach<'_> {
    fn drop(&mut self) {
        if table::at(self.0).ok().flatten().is_some() {
            run(Command::new("umount").arg("-l").arg(self.0)).ok();
        }
    }
}

fn end(mut child: Child, signal: &str) -> i32 {
    run(Command::new("kill").args([signal, &child.id().to_string()])).unwrap();
    child.wait().unwrap().code().unwrap_or(-1)
}

#[test]
fn a_mount_goes_to_the_background_once_it_is_usable_and_umount_waits_for_its_end() {
    let swarm = Swarm::new(1);
    swarm.publish("/file", b"content");
    let (folder, cache) = (swarm.folder("m"), swarm.folder("cache"));
    let _detach = Detach(&folder);
    let words = |at: &Path| [swarm.address(), at.to_string_lossy().into_owned()];
    let mount = |cache: &Path| {
        let [source, at] = words(&folder);
        swarmfs(&["mount", "--cache-dir", &cache.to_string_lossy(), "--listen", "127.0.0.1:0", &source, &at])
    };
    let mounted = mount(&cache);
    assert_eq!(exit_and_error(&mounted), (0, String::new()));
    assert!(String::from_utf8_lossy(&mounted.stdout).contains("is mounted at"));
    assert_eq!(std::fs::read(folder.join("file")).unwrap(), b"content");
    let pid = status::of_mount(&folder).unwrap().pid;
    assert_ne!(pid, std::process::id());

    let (code, error) = exit_and_error(&mount(&swarm.folder("other")));
    assert!(code == 1 && error.contains("mounted there already"), "{error}");
    let file = std::fs::File::open(folder.join("file")).unwrap();
    let (code, error) = exit_and_error(&swarmfs(&["umount", &folder.to_string_lossy()]));
    assert!(code == 1 && error.contains("is in use by"), "{error}");
    drop(file);
    assert_eq!(exit_and_error(&swarmfs(&["umount", &folder.to_string_lossy()])), (0, String::new()));
    assert!(table::at(&folder).unwrap().is_none());
    let ended = || std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
    assert!(ended(), "umount waited for process {pid}");
    let (code, error) = exit_and_error(&swarmfs(&["umount", &folder.to_string_lossy()]));
    assert!(code == 66 && error.contains("nothing is mounted there"), "{error}");
}

#[test]
fn umount_waits_for_what_is_being_saved_and_says_what_is_not() {
    let mut swarm = Swarm::new(0);
    let (folder, cache) = (swarm.folder("m"), swarm.folder("cache"));
    let _detach = Detach(&folder);
    let (address, at, cache) = (swarm.address(), folder.to_string_lossy(), cache.to_string_lossy());
    let spool = format!("{cache}/spool");
    let words = ["mount", "--writeback", "--write-timeout", "3s", "--cache-dir", &cache, "--listen", "127.0.0.1:0"];
    let mount = || exit_and_error(&swarmfs(&[&words[..], &[&address, &at]].concat()));
    assert_eq!(mount(), (0, String::new()));
    std::fs::write(folder.join("file"), b"written while nobody could take it").unwrap();
    let list = |of: &str| String::from_utf8(swarmfs(&["spool", "list", of]).stdout).unwrap();
    eventually("what is being saved is listed", || list(&at).contains("saving") && list(&at).contains("/file"));
    let (code, error) = exit_and_error(&swarmfs(&["umount", &at]));
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("waiting for 1 file") && error.contains("1 file that") && error.contains(&spool), "{error}");
    assert!(list(&spool).contains("saving"), "the next mount goes on with it: {}", list(&spool));

    swarm.add_seeder();
    assert_eq!(mount(), (0, String::new()));
    eventually("it is saved, unasked", || std::fs::read(folder.join("file")).is_ok_and(|bytes| bytes.len() == 34));
    std::fs::write(folder.join("file"), b"and over").unwrap();
    assert_eq!(exit_and_error(&swarmfs(&["umount", &at])).0, 0);
    assert!(!list(&spool).contains("file"));

    // What is damaged is told of.
    std::fs::write(format!("{spool}/77.json"), b"{").unwrap();
    std::fs::write(format!("{spool}/78.data"), b"bytes").unwrap();
    let (code, error) = exit_and_error(&swarmfs(&["spool", "list", &spool]));
    assert!(code == 0 && error.contains("77.json") && error.contains("78.data"), "{code} {error}");
    assert_eq!(mount(), (0, String::new()));
    assert!(Path::new(&spool).join("78.data").exists(), "nobody gave it up");
    let (code, error) = exit_and_error(&swarmfs(&["spool", "discard", &at, "76", "77", "78"]));
    assert!(code == 66 && error.contains("76: no such file"), "{code} {error}");
    assert_eq!(exit_and_error(&swarmfs(&["spool", "list", &at])), (0, String::new()));
    assert_eq!(exit_and_error(&swarmfs(&["umount", &at])).0, 0);
}

#[test]
fn what_a_killed_daemon_leaves_behind_is_cleared_by_the_next_mount() {
    let swarm = Swarm::new(1);
    swarm.publish("/file", b"content");
    let (folder, cache) = (swarm.folder("m"), swarm.folder("cache"));
    let _detach = Detach(&folder);
    let mount = || {
        let (cache, at) = (cache.to_string_lossy().into_owned(), folder.to_string_lossy().into_owned());
        swarmfs(&["mount", "--cache-dir", &cache, "--listen", "127.0.0.1:0", &swarm.address(), &at])
    };
    assert_eq!(exit_and_error(&mount()), (0, String::new()));
    let pid = status::of_mount(&folder).unwrap().pid;
    run(Command::new("kill").args(["-9", &pid.to_string()])).unwrap();
    eventually("the mount is dead", || std::fs::read(folder.join("file")).is_err());
    let again = mount();
    assert_eq!(exit_and_error(&again), (0, String::new()));
    assert!(String::from_utf8_lossy(&again.stdout).contains("cleared a dead mount"));
    assert_eq!(std::fs::read(folder.join("file")).unwrap(), b"content");
    assert_eq!(exit_and_error(&swarmfs(&["umount", &folder.to_string_lossy()])).0, 0);
}

#[test]
fn in_the_foreground_a_signal_unmounts() {
    let swarm = Swarm::new(1);
    swarm.publish("/file", b"content");
    for signal in ["-TERM", "-INT"] {
        let folder = swarm.folder("m");
        let _detach = Detach(&folder);
        let mut command = Command::new(env!("CARGO_BIN_EXE_swarmfs"));
        command.args(["mount", "--foreground", "--listen", "127.0.0.1:0", "--cache-dir"]);
        command.arg(swarm.folder("cache")).arg(swarm.address()).arg(&folder);
        let child = start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())).unwrap();
        eventually("it is mounted", || folder.join("file").exists());
        assert_eq!(end(child, signal), 0);
        assert!(table::at(&folder).unwrap().is_none());
    }
}

#[test]
fn a_mount_with_relative_folders_can_be_asked_from_everywhere() {
    let swarm = Swarm::new(1);
    let place = swarm.folder("m").parent().unwrap().to_owned();
    std::fs::write(place.join("settings.toml"), "cache_dir = \"c1\"\nspool_dir = \"s1\"\n").unwrap();
    let cases: [(&str, &[&str], &str, &str); 3] = [
        ("a", &["--config", "settings.toml"], "c1", "s1"),
        ("b", &["--cache-dir", "c2", "--foreground"], "c2", "c2/spool"),
        ("c", &["--cache-dir", "./c3", "--spool-dir", "s3/below"], "c3", "s3/below"),
    ];
    for (at, flags, cache, spool) in cases {
        let folder = place.join(at);
        let _detach = Detach(&folder);
        let mut command = Command::new(env!("CARGO_BIN_EXE_swarmfs"));
        command.current_dir(&place).env_remove("SWARM_TRACKER").stdout(Stdio::null()).stderr(Stdio::null());
        command.args(["mount", "--listen", "127.0.0.1:0"]).args(flags).arg(swarm.address()).arg(at);
        let mut child = start(&mut command).unwrap();
        eventually("it is mounted", || status::of_mount(&folder).is_some());
        let status = status::of_mount(&folder).unwrap();
        let path = |name: &str| place.join(name).to_string_lossy().into_owned();
        assert_eq!((status.cache_dir, status.spool_dir), (path(cache), Some(path(spool))), "{flags:?}");
        let listed = swarmfs(&["spool", "list", &folder.to_string_lossy()]);
        assert_eq!(exit_and_error(&listed), (0, String::new()), "{flags:?}");
        assert_eq!(exit_and_error(&swarmfs(&["umount", &folder.to_string_lossy()])), (0, String::new()));
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn what_goes_wrong_at_the_start_ends_the_command_with_its_code() {
    let swarm = Swarm::new(1);
    let at = swarm.folder("m").to_string_lossy().into_owned();
    let cases: [(&[&str], i32, &str); 5] = [
        (&["mount"], 2, "DIR"),
        (&["mount", "--cache-size", "lots", &swarm.address(), &at], 78, "--cache-size"),
        (&["mount", &format!("{}/none", swarm.address()), &at], 66, "no folder /none"),
        (&["mount", "--metadata-timeout", "1s", "swarm://127.0.0.1:1", &at], 69, "does not answer"),
        (&["umount", "/proc"], 66, "not of swarmfs"),
    ];
    for (arguments, want, says) in cases {
        let (code, error) = exit_and_error(&swarmfs(arguments));
        assert!(code == want && error.contains(says), "{arguments:?} ended with {code}: {error}");
        assert!(!Path::new(&at).exists());
    }
    let printed = swarmfs(&["mount", "--print-config", "--no-share", &swarm.address(), &at]);
    let text = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(text.contains("share = false") && text.contains("cache_size = \"10GiB\""), "{text}");
}
