//! stress-ng: all its stressors of file systems, each by itself, checking what they do.

use std::time::Duration;

use crate::harness::only_in_soak;
use crate::listed::listed;
use crate::place::Place;
use crate::program::{Program, program};

/// How long each stressor works.
const EACH: &str = "5s";

/// Stressors of one kind at a time.
const INSTANCES: &str = "2";

/// How stress-ng ends if it had not the means, or if what it tests is not there.
const NOT_RUN: [i32; 2] = [3, 4];

/// Those that need not run: one wants a kernel's module, one can hang the machine, and neither asks the mount.
const OTHERS: [&str; 2] = ["bind-mount", "binderfs"];

fn stressors() -> Vec<String> {
    let ended = program("stress-ng").args(&["--class", "filesystem?"]).run();
    let text = ended.text();
    let (_, names) = text.split_once("stressors:").unwrap_or_else(|| panic!("{}", ended.says()));
    names.split_whitespace().map(str::to_owned).collect()
}

fn stress(place: &Place, name: &str) -> Program {
    program("stress-ng")
        .arg(format!("--{name}"))
        .args(&[INSTANCES, "--verify", "--timeout", EACH, "--temp-path"])
        .arg(place.folder())
        .inside(place.folder())
        .within(Duration::from_secs(180))
}

#[test]
fn no_stressor_of_file_systems_finds_a_failure() {
    if only_in_soak("stress-ng, all stressors of the class filesystem") {
        return;
    }
    // One of them stores attributes.
    let place = Place::one_with(&["--xattr"]);
    let listed = listed("Programs");
    let names = stressors();
    assert!(names.len() >= 40, "this stress-ng has {} stressors of file systems", names.len());
    let mut wrong = Vec::new();
    for name in names.iter().map(String::as_str).filter(|name| !OTHERS.contains(name)) {
        let run = stress(&place, name).run();
        let listed = place.is_mount() && listed.contains_key(format!("stress-ng {name}").as_str());
        let said = [run.out.as_slice(), &run.err].concat();
        let failed = !run.status.success() || String::from_utf8_lossy(&said).contains("fail:");
        match (run.status.code(), listed) {
            (_, true) if !failed => wrong.push(format!("{name} passes: docs/SEMANTICS.md must not list it")),
            (Some(code), false) if NOT_RUN.contains(&code) => wrong.push(format!("it did not run: {}", run.says())),
            (_, false) if failed => wrong.push(run.says()),
            _ => {}
        }
    }
    eprintln!("stress-ng: {} stressors; not asked for: {OTHERS:?}", names.len());
    assert!(wrong.is_empty(), "{} stressors failed:\n{}", wrong.len(), wrong.join("\n"));
    place.end();
}
