//! `swarm-tracker` as a person meets it: exit codes, configuration, the operator's endpoint, signals.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swarm-tracker"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SWARM_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn refused(arguments: &[&str], code: i32, says: &[&str]) {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    for word in says {
        assert!(error.contains(word), "{arguments:?}: {word:?} is not in {error:?}");
    }
}

#[test]
fn what_is_wrong_is_said_and_has_its_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let data = data.to_str().unwrap();
    refused(&["--invented"], 2, &["--invented"]);
    refused(&[], 2, &["--data"]);
    refused(&["--data", data, "--listen", "here"], 78, &["`listen`", "--listen"]);
    refused(&["--data", data, "--replicas", "0"], 78, &["`replicas`"]);
    refused(&["--data", data, "--stale-grace", "soon"], 78, &["`stale_grace`", "soon"]);
    refused(&["--data", data, "--log", "=="], 78, &["log"]);
    let file = folder.path().join("config.toml");
    std::fs::write(&file, "replicsa = 3\n").unwrap();
    refused(&["--data", data, "--config", file.to_str().unwrap()], 78, &["`replicsa`", "line 1"]);
    refused(&["--data", data, "--config", "/nowhere.toml"], 78, &["/nowhere.toml"]);
    assert!(!Path::new(data).exists(), "nothing is made before the settings are right");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    refused(&["--data", data, "--listen", &taken], 69, &[&taken]);
    let foreign = folder.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("letter.txt"), "dear").unwrap();
    let foreign = foreign.to_str().unwrap();
    refused(&["--data", foreign, "--listen", "127.0.0.1:0", "--admin-listen", "off"], 78, &[foreign]);
}

#[test]
fn the_configuration_is_printed_with_flags_above_environment_above_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, "replicas = 4\nmin_replicas = 3\ndead_after = \"7min\"\n").unwrap();
    let output = program()
        .env("SWARM_CONFIG", &file)
        .env("SWARM_REPLICAS", "5")
        .env("SWARM_MIN_REPLICAS", "4")
        .args(["--print-config", "--min-replicas", "1"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for line in ["replicas = 5", "min_replicas = 1", "dead_after = \"7m\"", "listen = \"0.0.0.0:7070\""] {
        assert!(text.lines().any(|printed| printed == line), "{line} is not in\n{text}");
    }
    assert!(output.status.success());
}

/// A running tracker, and where its two doors are.
struct Running {
    child: Child,
    address: String,
    admin: String,
    log: std::sync::mpsc::Receiver<String>,
}

impl Running {
    fn start(data: &Path) -> Self {
        let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut child = program()
            .args(["--listen", "127.0.0.1:0", "--admin-listen", &admin, "--log-format", "json", "--data"])
            .arg(data)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (out, log) = std::sync::mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| out.send(line)));
        let address = loop {
            let line = log.recv_timeout(Duration::from_secs(20)).expect("it says where it serves");
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if line["fields"]["message"] == "tracker serves" {
                break line["fields"]["address"].as_str().unwrap().to_owned();
            }
        };
        Self { child, address, admin, log }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: tracker\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&mut self, signal: rustix::process::Signal) -> Option<i32> {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only if the test failed is it still there.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn it_shows_itself_to_its_operator_and_stops_cleanly_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let mut tracker = Running::start(folder.path());
        assert!(tracker.get("/livez").starts_with("HTTP/1.1 200"));
        assert!(tracker.get("/readyz").contains("ready"));
        // A client that holds a connection open does not keep it.
        let _idle = TcpStream::connect(&tracker.address).unwrap();
        let metrics = tracker.get("/metrics");
        for name in [
            "swarm_tracker_peers{kind=\"seeder\",state=\"live\"} 0",
            "swarm_tracker_segments 0",
            "swarm_tracker_holders_memory_bytes",
            "swarm_tracker_revision",
        ] {
            assert!(metrics.contains(name), "{name} is not in {metrics}");
        }
        let data = folder.path().to_str().unwrap();
        refused(&["--data", data, "--listen", "127.0.0.1:0", "--admin-listen", "off"], 69, &["in use"]);
        assert_eq!(tracker.signal(signal), Some(0));
        assert!(tracker.log.iter().any(|line| line.contains("Clean")), "it says how it stopped");
    }
}
