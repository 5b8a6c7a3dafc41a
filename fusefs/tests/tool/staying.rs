//! `swarmfs up`: what it keeps, and that one state has one process.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Swarm, bytes, tool};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn stopped_and_started_again_it_has_the_same_files() {
    let mut swarm = Swarm::start();
    let content = bytes(5 << 20, 1);
    fs::write(swarm.path("f"), &content).unwrap();
    swarm.run(&["put", "f", "/f"]);
    let url = swarm.url().to_owned();
    swarm.restart();
    assert_eq!(swarm.url(), url);
    assert!(swarm.try_run(&["cat", "/f"]).stdout == content);
}

#[test]
fn up_says_how_others_join_greets_with_files_and_ends_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("swarmfs");
    let mut command = tool();
    command.env("XDG_STATE_HOME", folder.path()).args(["up", "--no-mount"]);
    let mut child = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut said = Vec::new();
    for line in BufReader::new(child.0.stdout.take().unwrap()).lines() {
        said.push(line.unwrap());
        if said.last().unwrap().contains("Ctrl-C") {
            break;
        }
    }
    let said = said.join("\n");
    assert!(said.contains("swarm-seeder --tracker swarm://") && said.contains("swarmfs mount swarm://"), "{said}");
    assert!(said.contains("--listen 0.0.0.0"), "{said}");
    // Other commands find it by themselves.
    let run = |arguments: &[&str]| tool().env("XDG_STATE_HOME", folder.path()).args(arguments).output().unwrap();
    let listed = run(&["ls", "/welcome"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("README.md"), "{listed:?}");
    let text = run(&["cat", "/welcome/README.md"]);
    assert!(text.stdout == include_bytes!("../../../README.md"));
    let second = run(&["up", "--no-mount"]);
    let refused = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{refused}");
    assert!(refused.contains("already") && refused.contains(&*state.to_string_lossy()), "{refused}");
    let pid = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        match child.0.try_wait().unwrap() {
            Some(status) => break status,
            None => assert!(Instant::now() < deadline, "it does not end"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
}
