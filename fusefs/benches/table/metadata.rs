//! Calls that move no content, one after the other and eight at a time.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::contest::{Contest, Shown};
use super::measure::forget_names;
use super::report::Report;

pub(crate) fn run(report: &mut Report) {
    if !report.wants("metadata") {
        return;
    }
    let files = report.shrunk(2_000);
    let mut contest = Contest::start();
    for round in 0..report.rounds {
        for threads in [1, 8] {
            contest.round(round, |turn, folder| {
                let folder = folder.join(format!("threads-{threads}"));
                for thread in 0..threads {
                    std::fs::create_dir_all(lane(&folder, thread)).expect("make a folder");
                }
                let mut time = |what: &str, work: fn(&Path, u64)| {
                    let name = format!("{what}, {threads} thread{}", if threads == 1 { "" } else { "s" });
                    turn.time(&name, files as f64, || each(&folder, threads, files, work));
                };
                time("`open(O_CREAT)` and `close`", |folder, index| {
                    File::create_new(folder.join(format!("a-{index}"))).expect("make a file");
                });
                let stat = |folder: &Path, index| {
                    folder.join(format!("a-{index}")).symlink_metadata().expect("a file that was made");
                };
                time("`stat` of what was made just now", stat);
                forget_names();
                time("`stat`, the kernel's caches dropped", stat);
                time("`rename`", |folder, index| {
                    let name = |letter| folder.join(format!("{letter}-{index}"));
                    std::fs::rename(name('a'), name('b')).expect("rename a file");
                });
                time("`unlink`", |folder, index| {
                    std::fs::remove_file(folder.join(format!("b-{index}"))).expect("remove a file");
                });
            });
        }
    }
    let title =
        format!("Metadata in a mount, operations a second ({files} of each; each thread in a folder of its own)");
    contest.show(report, &title, Shown::Rate, 0, "≥ 1, aim 2");
}

fn lane(folder: &Path, thread: u64) -> PathBuf {
    folder.join(thread.to_string())
}

/// Do the work for so many files altogether.
fn each(folder: &Path, threads: u64, files: u64, work: fn(&Path, u64)) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let own = lane(folder, thread);
                (thread..files).step_by(usize::try_from(threads).expect("a few")).for_each(|index| work(&own, index));
            });
        }
    });
}
