//! Rows and their figures, printed as they come and written to `docs/BENCHMARKS.md` at the end.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// All rows of one run.
pub(crate) struct Report {
    only: Option<String>,
    /// Rounds of each row.
    pub(crate) rounds: usize,
    /// By what the amounts of the rows that write are divided.
    shrink: u64,
    sections: Vec<(String, Vec<String>)>,
}

impl Report {
    pub(crate) fn new() -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
        let rounds = number("BENCH_ROUNDS").map_or(5, |rounds| rounds as usize);
        let shrink = number("BENCH_SHRINK").map_or(1, |shrink| shrink.max(1).into());
        Self { only: std::env::var("BENCH_ONLY").ok(), rounds, shrink, sections: Vec::new() }
    }

    /// Whether the rows of this name are wanted.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    /// An amount of a row that writes, as it is asked for.
    pub(crate) fn shrunk(&self, amount: u64) -> u64 {
        (amount / self.shrink).max(1)
    }

    pub(crate) fn section(&mut self, title: &str, columns: &[&str]) {
        eprintln!("\n## {title}");
        let head = format!("| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len()));
        self.sections.push((title.to_owned(), vec![head]));
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        eprintln!("{}", cells.join("  |  "));
        let (_, rows) = self.sections.last_mut().expect("a section comes first");
        rows.push(format!("| {} |", cells.join(" | ")));
    }

    pub(crate) fn finish(self) {
        if self.only.is_some() || self.shrink > 1 {
            eprintln!("\nnot written: only some rows were measured, or less than they name");
            return;
        }
        let mut text = String::from("# Benchmarks\n\n");
        let _ = writeln!(
            text,
            "Written by `make bench`; medians of {} rounds, references measured in turn in the same run. Cold: the \
             kernel's and the mount's caches are empty, the seeders' data is in the page cache, and from the \
             second round on was verified by them less than ten minutes before (ADR 8). Three seeders, all on one \
             machine, whose files a mount there reads itself (ADR 9); `over the network` are the same with \
             `--no-local-reads`, as from other machines but for the wire. What is written in a mount goes to two seeders, \
             two replicas; sshfs and the memory-only file system keep one copy, and sshfs's is safe from a power cut \
             only after an `fsync`. Each is mounted anew for each round, once the swarm has rested from the one before. Quote the ratios: the machine is shared and noisy.\n",
            self.rounds
        );
        let _ = writeln!(text, "Machine: {}.\n", machine());
        for (title, rows) in &self.sections {
            let _ = writeln!(text, "## {title}\n\n{}\n", rows.join("\n"));
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/BENCHMARKS.md");
        std::fs::write(&path, text).expect("write docs/BENCHMARKS.md");
        eprintln!("\nwritten: {}", path.display());
    }
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    let kernel = Command::new("uname").arg("-r").output().map(|output| output.stdout).unwrap_or_default();
    format!(
        "{} cores of {}, {} GiB, Linux {}",
        cores,
        model.trim_start_matches([':', ' ', '\t']),
        kib >> 20,
        String::from_utf8_lossy(&kernel).trim()
    )
}

/// Median of at least one figure.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

/// `median (min–max)`.
pub(crate) fn spread(figures: &[f64], digits: usize) -> String {
    let low = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let high = figures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{:.digits$} ({low:.digits$}–{high:.digits$})", median(figures))
}

/// Median of the ratios of the same rounds.
pub(crate) fn ratio(a: &[f64], b: &[f64]) -> f64 {
    let ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
    median(&ratios)
}
