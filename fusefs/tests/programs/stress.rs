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

/// Ways it ends: it had not the means, or this kernel has not what it tests.
const NOT_RUN: [i32; 2] = [3, 4];

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
    let Some(place) = Place::one() else { return };
    let listed = listed("Programs");
    let names = stressors();
    assert!(names.len() >= 40, "this stress-ng has {} stressors of file systems", names.len());
    let (mut wrong, mut not_run) = (Vec::new(), Vec::new());
    for name in &names {
        let run = stress(&place, name).run();
        let listed = place.is_mount() && listed.contains_key(format!("stress-ng {name}").as_str());
        let failed = !run.status.success() || run.text().contains("fail:");
        match (run.status.code(), listed) {
            (Some(code), _) if NOT_RUN.contains(&code) => not_run.push(name.as_str()),
            (_, true) if !failed => wrong.push(format!("{name} passes: docs/SEMANTICS.md must not list it")),
            (_, false) if failed => wrong.push(run.says()),
            _ => {}
        }
    }
    eprintln!("stress-ng: {} stressors; not run, as this machine has not what they need: {not_run:?}", names.len());
    assert!(wrong.is_empty(), "{} stressors failed:\n{}", wrong.len(), wrong.join("\n"));
    place.end();
}
