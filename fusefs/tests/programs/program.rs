//! One run of a program, which ends in time or is killed with all that it started.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// How long a program may take, if nothing else is said: many times what it takes.
const PATIENCE: Duration = Duration::from_secs(300);

/// A program to run.
pub(crate) struct Program {
    command: Command,
    within: Duration,
}

/// A program that has ended, and what it wrote.
pub(crate) struct Ended {
    words: String,
    pub(crate) status: ExitStatus,
    pub(crate) out: Vec<u8>,
    pub(crate) err: Vec<u8>,
    pub(crate) took: Duration,
}

/// Run `name` with nothing of this process's cargo in its environment.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Program {
    let mut command = Command::new(name);
    command.stdin(Stdio::null()).process_group(0).env("LC_ALL", "C.UTF-8");
    for (name, _) in std::env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        (name.starts_with("CARGO") && name != "CARGO_HOME") || name.starts_with("RUST_") || name.starts_with("GIT_")
    }) {
        command.env_remove(name);
    }
    Program { command, within: PATIENCE }
}

impl Program {
    pub(crate) fn arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.command.arg(word);
        self
    }

    pub(crate) fn args(mut self, words: &[&str]) -> Self {
        self.command.args(words);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn inside(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    pub(crate) fn within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    /// What it reads from its standard input.
    pub(crate) fn input(mut self, text: &[u8]) -> Self {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        file.rewind().unwrap();
        self.command.stdin(file);
        self
    }

    /// Run it to its end, not judging how it ended; a hang is a failure that shows what it hung in.
    #[track_caller]
    pub(crate) fn run(mut self) -> Ended {
        let words = self.words();
        let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        self.command.stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap());
        let began = Instant::now();
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("start {words}: {error}"));
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if began.elapsed() > self.within {
                let waiting = waits_in(child.id());
                kill_group(&mut child);
                let (out, err) = (all(&mut out), all(&mut err));
                panic!("{words}: not within {:?}\n{waiting}{}", self.within, tails(&out, &err));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Ended { words, status, out: all(&mut out), err: all(&mut err), took: began.elapsed() }
    }

    /// Run it; it must succeed.
    #[track_caller]
    pub(crate) fn ok(self) -> Ended {
        let ended = self.run();
        assert!(ended.status.success(), "{}", ended.says());
        ended
    }

    /// Start it, kill -9 it after `time`; whether it was still running then.
    pub(crate) fn killed_after(mut self, time: Duration) -> bool {
        let mut child = self.command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(time);
        let running = child.try_wait().unwrap().is_none();
        kill_group(&mut child);
        running
    }

    fn words(&self) -> String {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    }
}

impl Ended {
    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// What ran, how it ended and the last of what it wrote.
    pub(crate) fn says(&self) -> String {
        format!("{} ended with {} after {:?}\n{}", self.words, self.status, self.took, tails(&self.out, &self.err))
    }
}

/// kill -9 to a program and all that it started.
fn kill_group(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("the id of a process");
    kill_process_group(group, Signal::KILL).ok();
    // A process that waits in the kernel for a mount that never answers ends with that mount.
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What the processes of a group wait for in the kernel.
fn waits_in(group: u32) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let stat = read("stat");
        // After the name in brackets: state, parent, group.
        let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        if fields.split(' ').nth(2) == Some(&group.to_string()) {
            let words = read("cmdline").replace('\0', " ");
            text += &format!("  {words}: state {}, waits in {}\n", &fields[..1], read("wchan"));
        }
    }
    text
}

fn all(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn tails(out: &[u8], err: &[u8]) -> String {
    let tail = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    };
    format!("--- standard output\n{}\n--- standard error\n{}", tail(out), tail(err))
}
