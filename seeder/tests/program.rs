//! The program itself: what it says and how it ends.

#![allow(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

fn program(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swarm-seeder"));
    command.args(words).env_remove("SWARM_TRACKER").env_remove("SWARM_CONFIG").stdin(Stdio::null());
    command
}

fn ended(child: &mut Running, words: &[&str]) -> ExitStatus {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "{words:?} does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ends(words: &[&str], code: i32, says: &str) -> Output {
    let mut command = program(words);
    let mut child = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let status = ended(&mut child, words);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    child.0.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
    child.0.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    let output = Output { status, stdout, stderr };
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
    assert!(text.contains(says), "{words:?} does not say {says:?}: {text}");
    output
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Acts on drop: kills it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

#[test]
fn what_is_wrong_is_said_before_anything_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data").to_string_lossy().into_owned();
    let fails = |more: &[&str], code, says| {
        let words = [&["--tracker", "swarm://127.0.0.1:9", "--data", &data], more].concat();
        ends(&words, code, says);
    };
    ends(&["--no-such-flag"], 2, "--no-such-flag");
    ends(&["--data", &data], 78, "SWARM_TRACKER");
    ends(&["--tracker", "https://x"], 78, "swarm://host:7070");
    fails(&["--capacity", "much"], 78, "--capacity");
    fails(&["--log", "=="], 78, "log filter");
    let file = folder.path().join("seeder.toml").to_string_lossy().into_owned();
    std::fs::write(&file, "capcity = 1\n").unwrap();
    fails(&["--config", &file], 78, "line 1");
    assert!(!Path::new(&data).exists());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = (taken.local_addr().unwrap().to_string(), taken);
    fails(&["--listen", &taken.0, "--admin-listen", "off"], 69, &taken.0);
    fails(&["--listen", "127.0.0.1:0", "--admin-listen", &taken.0], 69, &taken.0);
}

#[test]
fn the_settings_shown_are_those_that_would_be_used() {
    let output = ends(&["--tracker", "swarm://a:1", "--capacity", "2GiB", "--print-config"], 0, "2GiB");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("seeder.toml");
    std::fs::write(&file, &output.stdout).unwrap();
    let again = ends(&["--config", &file.to_string_lossy(), "--print-config"], 0, "swarm://a:1");
    assert_eq!(output.stdout, again.stdout);
}

#[test]
fn it_serves_shows_itself_and_ends_clean_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let (listen, admin) = (free_address(), free_address());
    let log = folder.path().join("log");
    let start = |log: &Path| {
        let data = folder.path().join("data");
        let words = ["--tracker", "swarm://127.0.0.1:9", "--listen", &listen, "--admin-listen", &admin, "--data"];
        let mut command = program(&words);
        Running(command.arg(data).stderr(std::fs::File::create(log).unwrap()).spawn().unwrap())
    };
    let mut seeder = start(&log);
    let deadline = Instant::now() + Duration::from_secs(30);
    while get(&admin, "/livez").is_none() || TcpStream::connect(&listen).is_err() {
        assert!(Instant::now() < deadline, "{}", std::fs::read_to_string(&log).unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    // The tracker is away: alive, serving, but known to nobody.
    assert!(get(&admin, "/readyz").unwrap().starts_with("HTTP/1.1 503"));
    let metrics = get(&admin, "/metrics").unwrap();
    for name in ["swarm_peer_served_bytes_total", "swarm_peer_used_bytes", "swarm_peer_trackers_told"] {
        assert!(metrics.contains(name), "no {name} in {metrics}");
    }
    let pid = i32::try_from(seeder.0.id()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = ended(&mut seeder, &["a seeder that was told to stop"]);
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(status.success() && said.contains("ended clean"), "{status}: {said}");
}
