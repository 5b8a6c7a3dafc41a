//! A repository that is cloned into a mount, and asked what changed.

use std::fmt::Write;
use std::path::Path;

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::contest::{Contest, Shown};
use super::measure::seconds;
use super::report::Report;
use super::writing::in_memory;

/// As for somebody who has configured nothing.
const GIT: &str =
    "GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null git -c user.name=bench -c user.email=bench@localhost";

pub(crate) fn run(report: &mut Report) {
    if !report.wants("git") {
        return;
    }
    let files = report.shrunk(3_000);
    let mut contest = Contest::start();
    for round in 0..report.rounds {
        let source = in_memory();
        let origin = source.path().join("origin");
        commit(&origin, files, round as u64 + 400);
        contest.round(round, |turn, folder| {
            let clone = folder.join("clone");
            let line = format!("{GIT} clone -q --no-hardlinks {} {}", origin.display(), clone.display());
            turn.time_line("`git clone --no-hardlinks`", 1.0, &line);
            for name in ["`git status`, first", "`git status`, second"] {
                let line = format!("test -z \"$({GIT} -C {} status --porcelain)\"", clone.display());
                turn.time_line(name, 1.0, &line);
            }
        });
    }
    let title = format!("git in a mount, a repository of {files} files, seconds");
    contest.show(report, &title, Shown::Seconds, 2, "");
}

/// A repository with one commit, packed, of files of up to 8 KiB.
fn commit(folder: &Path, files: u64, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    for index in 0..files {
        let path = folder.join(format!("part-{}/module-{}/file-{index}.txt", index % 10, index / 10 % 10));
        std::fs::create_dir_all(path.parent().expect("it was just made of parts")).expect("make a folder");
        let lines = rng.random_range(10..220);
        let text = (0..lines).fold(String::new(), |mut text, _| {
            let _ = writeln!(text, "line {:016x} {:016x}", rng.random::<u64>(), rng.random::<u64>());
            text
        });
        std::fs::write(path, text).expect("write a file");
    }
    seconds(&format!(
        "cd {} && {GIT} init -q -b main . && {GIT} add -A && {GIT} commit -q -m all && {GIT} repack -adq",
        folder.display()
    ));
}
