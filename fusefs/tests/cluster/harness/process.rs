//! One daemon process: started, watched until it is ready, killed or stopped.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use super::eventually;

/// A binary of this workspace, built beside the test.
pub(crate) fn binary(name: &str) -> PathBuf {
    let own = PathBuf::from(env!("CARGO_BIN_EXE_swarmfs"));
    let path = own.with_file_name(name);
    assert!(path.exists(), "{} is not built: run `cargo build --workspace --bins` first", path.display());
    path
}

/// A port of loopback that nobody listens on now.
///
/// None that the kernel hands out by itself: to whoever connects, and to whoever listens on any port, it would give one that
/// a process of a test is only about to take, or to take again.
pub(crate) fn free_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 10_000..32_000;
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    // Another test process begins elsewhere.
    let first = u16::try_from(std::process::id() % u32::from(count)).unwrap();
    for _ in 0..count {
        let taken = TAKEN.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + u16::try_from((u32::from(first) + u32::from(taken)) % u32::from(count)).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port of {PORTS:?} is free");
}

/// A program that is started with the same words each time.
pub(crate) struct Daemon {
    pub(crate) name: String,
    program: PathBuf,
    arguments: Vec<String>,
    namespace: Option<String>,
    log: PathBuf,
    admin: String,
    child: Option<Child>,
}

impl Daemon {
    /// Not started yet. `admin` is where its `/readyz` answers, empty if it has none.
    pub(crate) fn new(folder: &Path, name: &str, program: &str, arguments: Vec<String>, admin: String) -> Self {
        Self {
            name: name.to_owned(),
            program: binary(program),
            arguments,
            namespace: None,
            log: folder.join(format!("{name}.log")),
            admin,
            child: None,
        }
    }

    /// Run it inside a network namespace.
    pub(crate) fn in_namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Start the process; not waiting for anything.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let mut log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        writeln!(log, "--- {} {}", self.program.display(), self.arguments.join(" ")).unwrap();
        let mut command = match &self.namespace {
            Some(namespace) => {
                // Not `ip netns exec`: that hides the mounts that the program makes.
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{namespace}")).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        let child = command
            .args(&self.arguments)
            .env("RUST_BACKTRACE", "1")
            .env_remove("SWARM_TRACKER")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", self.name));
        self.child = Some(child);
    }

    /// Start it and wait until it says that it is ready.
    pub(crate) fn start(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    /// Wait for `/readyz`.
    pub(crate) fn wait_ready(&mut self) {
        if self.admin.is_empty() {
            return;
        }
        let began = Instant::now();
        while http_get(self.namespace.as_deref(), &self.admin, "/readyz").is_none_or(|(code, _)| code != 200) {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("{} ended with {status} instead of getting ready:\n{}", self.name, self.log_tail());
            }
            let patience = Duration::from_secs(60);
            assert!(began.elapsed() < patience, "{} is not ready within {patience:?}:\n{}", self.name, self.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// kill -9, and wait until it is gone.
    pub(crate) fn kill(&mut self) {
        self.kill_or(|| {});
    }

    /// Leave the process to whoever asks, so that another can be started in its place.
    #[allow(dead_code, reason = "for the cluster tests")]
    pub(crate) fn take(&mut self) -> Child {
        self.child.take().expect("running")
    }

    /// The same as [`Self::kill`]; `stuck` helps where the kernel does not let go of it.
    pub(crate) fn kill_or(&mut self, stuck: impl FnOnce()) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            let began = Instant::now();
            while child.try_wait().unwrap().is_none() {
                if began.elapsed() > Duration::from_secs(5) {
                    stuck();
                    child.wait().unwrap();
                    return;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// SIGTERM, and wait until it has ended by itself.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("running");
        signal(&child, "TERM");
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if began.elapsed() > Duration::from_secs(40) {
                child.kill().ok();
                panic!("{} did not stop within 40 s of SIGTERM:\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.as_ref().expect("running"), name);
    }

    /// Its process id.
    #[allow(dead_code, reason = "for the benchmarks")]
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    /// Resident memory now, in bytes.
    #[allow(dead_code, reason = "for the benchmarks")]
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// The page of metrics it shows.
    pub(crate) fn metrics(&self) -> super::metrics::Metrics {
        let got = http_get(self.namespace.as_deref(), &self.admin, "/metrics");
        let (code, body) = got.unwrap_or_else(|| panic!("{} shows no metrics", self.name));
        assert_eq!(code, 200, "{}", self.name);
        super::metrics::Metrics::parse(&body)
    }

    /// All that it has written.
    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(&self.log) {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).ok();
            text = String::from_utf8_lossy(&bytes).into_owned();
        }
        text
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        let log = self.log();
        if log.contains("panicked at") && !std::thread::panicking() {
            panic!("{} panicked:\n{}", self.name, self.log_tail());
        }
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status().unwrap();
    assert!(sent.success(), "send SIG{name}");
    if name == "STOP" {
        // One of its threads is told, and tells the others: on a busy machine they go on for a moment.
        eventually("all its threads have stopped", Duration::from_secs(10), || is_stopped(child));
    }
}

fn is_stopped(child: &Child) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let status =
        |thread: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(thread.ok()?.path().join("status")).ok();
    threads.filter_map(status).all(|status| status.lines().any(|line| line.starts_with("State:\tT")))
}

/// A plain HTTP GET: code and body.
fn http_get(namespace: Option<&str>, address: &str, path: &str) -> Option<(u16, String)> {
    let text = match namespace {
        None => {
            let mut stream = TcpStream::connect_timeout(&address.parse().ok()?, Duration::from_millis(500)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            text
        }
        Some(namespace) => {
            let script = format!(
                "exec 3<>/dev/tcp/{}; printf 'GET {path} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3",
                address.replace(':', "/")
            );
            let output = Command::new("nsenter")
                .arg(format!("--net=/run/netns/{namespace}"))
                .args(["bash", "-c", &script])
                .output()
                .ok()?;
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
    };
    let code = text.split_whitespace().nth(1)?.parse().ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let body = if head.to_lowercase().contains("transfer-encoding: chunked") { unchunk(body) } else { body.to_owned() };
    Some((code, body))
}

fn unchunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let Ok(length) = usize::from_str_radix(length.trim(), 16) else { break };
        let Some(part) = rest.get(..length) else { break };
        if length == 0 {
            break;
        }
        text.push_str(part);
        body = rest.get(length + 2..).unwrap_or_default();
    }
    text
}

/// Where the kernel may be told to end what is mounted at `folder`, whatever waits for it.
pub(crate) fn abort_switch(folder: &Path) -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let device = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find_map(|words| (words.get(4).is_some_and(|at| Path::new(at) == folder)).then(|| words[2].to_owned()))?;
    let (_, minor) = device.split_once(':')?;
    Some(PathBuf::from(format!("/sys/fs/fuse/connections/{minor}/abort")))
}

/// Unmount whatever is at `folder`, also a dead mount.
pub(crate) fn force_unmount(folder: &Path) {
    let is_mounted = || {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == folder))
    };
    if is_mounted() {
        Command::new("umount").arg("-l").arg(folder).status().ok();
        eventually("unmount", Duration::from_secs(10), || !is_mounted());
    }
}
