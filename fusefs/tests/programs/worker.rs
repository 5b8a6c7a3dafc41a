//! A process of its own that opens, writes and reads files as it is told: this test program, started once more.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::{Deserialize, Serialize};

/// Where the process works; set only for it.
const FOLDER: &str = "SWARM_TEST_WORKER_FOLDER";

/// Marks a line as an answer, among what the test harness prints.
const ANSWER: &str = "@@";

/// What a process can be told. Each opens the file anew and closes it before it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Write all of the file.
    Replace { name: String, content: Content },
    /// Write over a part of it.
    Patch { name: String, offset: u64, content: Content },
    /// Write at its end.
    Append { name: String, content: Content },
    /// Cut or lengthen it.
    SetLength { name: String, length: u64 },
    /// Read all of it.
    Read { name: String },
}

/// Bytes that are told by their seed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Content {
    pub(crate) seed: u64,
    pub(crate) length: usize,
}

impl Content {
    pub(crate) fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        blake3::Hasher::new().update(&self.seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }
}

/// What it answers: the length and hash of what it read, or why it could not.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Bytes { length: usize, hash: String },
    Failed(String),
}

impl Answer {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::Bytes { length: bytes.len(), hash: blake3::hash(bytes).to_hex().to_string() }
    }
}

/// The process, ended when dropped.
pub(crate) struct Worker {
    child: Child,
    tasks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    pub(crate) fn start(folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["worker::works_as_it_is_told", "--exact", "--ignored", "--nocapture"])
            .env(FOLDER, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (tasks, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, tasks, answers }
    }

    /// Have it do one thing, and wait until it has.
    #[track_caller]
    pub(crate) fn ask(&mut self, task: &Task) -> Answer {
        writeln!(self.tasks, "{}", serde_json::to_string(task).unwrap()).unwrap();
        loop {
            let mut line = String::new();
            assert!(self.answers.read_line(&mut line).unwrap() > 0, "the process ended in {task:?}");
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return serde_json::from_str(answer).unwrap();
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
#[ignore = "not a test: the process that `Worker` starts"]
fn works_as_it_is_told() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    for line in std::io::stdin().lines() {
        let task = serde_json::from_str(&line.unwrap()).unwrap();
        let answer = work(Path::new(&folder), task).unwrap_or_else(|error| Answer::Failed(error.to_string()));
        println!("{ANSWER}{}", serde_json::to_string(&answer).unwrap());
    }
}

fn work(folder: &Path, task: Task) -> std::io::Result<Answer> {
    let to_write = |name: String| OpenOptions::new().write(true).open(folder.join(name));
    match task {
        Task::Replace { name, content } => File::create(folder.join(name))?.write_all(&content.bytes())?,
        Task::Patch { name, offset, content } => to_write(name)?.write_all_at(&content.bytes(), offset)?,
        Task::Append { name, content } => {
            OpenOptions::new().append(true).open(folder.join(name))?.write_all(&content.bytes())?;
        }
        Task::SetLength { name, length } => to_write(name)?.set_len(length)?,
        Task::Read { name } => {
            let mut bytes = Vec::new();
            File::open(folder.join(name))?.read_to_end(&mut bytes)?;
            return Ok(Answer::of(&bytes));
        }
    }
    Ok(Answer::Done)
}
