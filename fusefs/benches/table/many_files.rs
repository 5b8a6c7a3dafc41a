//! Many small files in a mount: made, unpacked, removed.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use rand::{RngCore, SeedableRng, rngs::SmallRng};

use super::contest::{COLUMNS, Contest, Shown};
use super::harness::write_random;
use super::measure::seconds;
use super::report::Report;
use super::writing::in_memory;

const SMALL: usize = 16 * 1024;
const GOAL: &str = "≥ 1, aim 2";

pub(crate) fn run(report: &mut Report) {
    let wanted = ["create small files", "untar", "rm -r"].map(|name| report.wants(name));
    if wanted.contains(&true) {
        report.section("Many files in a mount, files a second", &COLUMNS);
    }
    let rows: [fn(&mut Report); 3] = [create, untar, remove_tree];
    for (row, _) in rows.into_iter().zip(wanted).filter(|(_, wanted)| *wanted) {
        row(report);
    }
}

fn create(report: &mut Report) {
    let files = report.shrunk(2_000);
    let mut contest = Contest::start();
    for round in 0..report.rounds {
        // Other bytes each time: what the swarm has already is not sent again.
        let mut rng = SmallRng::seed_from_u64(round as u64 + 200);
        let mut bytes = vec![0; SMALL * usize::try_from(files).expect("64 bits")];
        rng.fill_bytes(&mut bytes);
        contest.round(round, |turn, folder| {
            turn.time(&format!("create and write {files} of 16 KiB"), files as f64, || {
                for (index, content) in bytes.chunks(SMALL).enumerate() {
                    let mut file = File::create_new(folder.join(format!("{index:04}"))).expect("make a file");
                    file.write_all(content).expect("write a file");
                }
            });
        });
    }
    contest.rows(report, Shown::Rate, 0, GOAL);
}

fn untar(report: &mut Report) {
    let files = report.shrunk(2_000);
    let mut contest = Contest::start();
    for round in 0..report.rounds {
        let source = in_memory();
        let (tree, archive) = (source.path().join("tree"), source.path().join("archive"));
        for index in 0..files {
            let name = format!("{:02}/{index:04}", index % 20);
            write_random(&tree.join(name), SMALL as u64, (round as u64 + 3) * 1_000_000 + index);
        }
        seconds(&format!("tar -C {} -cf {} .", tree.display(), archive.display()));
        contest.round(round, |turn, folder| {
            let line = format!("tar -C {} -xf {}", folder.display(), archive.display());
            turn.time_line(&format!("`tar -xf` of {files} of 16 KiB in 20 folders"), files as f64, &line);
        });
    }
    contest.rows(report, Shown::Rate, 0, GOAL);
}

fn remove_tree(report: &mut Report) {
    let files = report.shrunk(10_000);
    let mut contest = Contest::start();
    for round in 0..report.rounds {
        contest.round(round, |turn, folder| {
            let tree = folder.join("tree");
            fill(&tree, files);
            let line = format!("rm -r {}", tree.display());
            turn.time_line(&format!("`rm -r` of {files} in 8 folders"), files as f64, &line);
        });
    }
    contest.rows(report, Shown::Rate, 0, GOAL);
}

/// So many empty files, made by eight threads.
fn fill(tree: &Path, files: u64) {
    const THREADS: u64 = 8;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let folder = tree.join(thread.to_string());
                std::fs::create_dir_all(&folder).expect("make a folder");
                for index in (thread..files).step_by(8) {
                    File::create_new(folder.join(format!("{index:05}"))).expect("make a file");
                }
            });
        }
    });
}
