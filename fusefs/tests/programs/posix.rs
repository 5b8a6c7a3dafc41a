//! pjdfstest: what POSIX says of every call on names and attributes.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::listed::listed;
use crate::place::{Place, scratch};
use crate::program::program;
use crate::tools::installed;

const VERSION: &str = "0.2.2";

/// Tests that this version has on Linux.
const TESTS: usize = 398;

/// Those of them that remount the file system read-only, which a plain folder cannot be.
const REMOUNTING: usize = 13;

/// In thousandths of all tests.
const MOST_LISTED: usize = 10;

/// Whether tests may remount the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remounts {
    Allowed,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

#[test]
fn every_posix_test_passes_or_is_listed_with_its_reason() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: pjdfstest changes user, makes devices and remounts: run it as root");
        return;
    }
    let suite = installed("pjdfstest", VERSION);
    let place = Place::one();
    let scratch = scratch();
    let path = format!("{}:{}", mount_without_helper(scratch.path()).display(), std::env::var("PATH").unwrap());
    let run = |remounts: Remounts, only: &[&str]| {
        let config = scratch.path().join("pjdfstest.toml");
        std::fs::write(&config, settings(remounts, &place, scratch.path())).unwrap();
        let suite = program(suite.clone()).arg("-c").arg(&config).arg("-p").arg(place.folder()).args(only);
        let run = suite.env("PATH", &path).env("NO_COLOR", "1").within(Duration::from_secs(600)).run();
        eprintln!("pjdfstest {only:?} took {:?}", run.took);
        let (outcomes, details) = parse(&run.text());
        let want = if only.is_empty() { TESTS } else { REMOUNTING };
        assert_eq!(outcomes.len(), want, "tests that ran; {}", run.says());
        (outcomes, details)
    };
    // Those that remount run by themselves: of the others, some leave a file open that is gone, and while there is one
    // Linux remounts nothing.
    let (mut outcomes, mut details) = run(Remounts::Never, &[]);
    if place.is_mount() {
        let remounting = run(Remounts::Allowed, &["::erofs_"]);
        outcomes.extend(remounting.0);
        details.extend(remounting.1);
    }
    judge(&place, &outcomes, &details);
    place.end();
}

/// Compare the outcomes with what docs/SEMANTICS.md lists.
fn judge(place: &Place, outcomes: &BTreeMap<String, Outcome>, details: &BTreeMap<String, String>) {
    let listed = listed("The POSIX suite");
    assert!(listed.len() * 1000 <= TESTS * MOST_LISTED, "{} of {TESTS} tests are listed", listed.len());
    let mut wrong = Vec::new();
    for name in listed.keys().filter(|name| !outcomes.contains_key(**name)) {
        wrong.push(format!("{name} is listed in docs/SEMANTICS.md, but there is no such test"));
    }
    let mut skipped = 0;
    for (name, outcome) in outcomes {
        let remounts = name.contains("::erofs_");
        match (outcome, place.is_mount() && listed.contains_key(name.as_str())) {
            (Outcome::Passed, false) | (Outcome::Failed | Outcome::Skipped, true) => {}
            (Outcome::Passed, true) => wrong.push(format!("{name} passes: docs/SEMANTICS.md must not list it")),
            (Outcome::Skipped, false) if remounts && !place.is_mount() => skipped += 1,
            (Outcome::Failed | Outcome::Skipped, false) => {
                wrong.push(format!("{name}: {outcome:?}\n{}", details.get(name).map_or("", String::as_str)));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {TESTS} are not as promised:\n{}", wrong.len(), wrong.join("\n"));
    let expected = if place.is_mount() { 0 } else { REMOUNTING };
    assert_eq!(skipped, expected, "tests that remount, in a folder that cannot be");
}

/// The outcome of each test, and what it said besides.
fn parse(output: &str) -> (BTreeMap<String, Outcome>, BTreeMap<String, String>) {
    let (mut outcomes, mut details) = (BTreeMap::new(), BTreeMap::<String, String>::new());
    let mut current = String::new();
    for line in output.lines() {
        let outcome = match line.split_whitespace().last() {
            Some("ok") => Some(Outcome::Passed),
            Some("FAILED") => Some(Outcome::Failed),
            Some("skipped") => Some(Outcome::Skipped),
            _ => None,
        };
        match (line.split_once(' '), outcome) {
            (Some((name, _)), Some(outcome)) if !line.starts_with('\t') && name.contains("::") => {
                assert_eq!(outcomes.insert(name.to_owned(), outcome), None, "{name} ran twice");
                name.clone_into(&mut current);
            }
            _ => *details.entry(current.clone()).or_default() += &format!("    {}\n", line.trim()),
        }
    }
    (outcomes, details)
}

/// Everything that Linux has is switched on.
fn settings(remounts: Remounts, place: &Place, scratch: &Path) -> String {
    let other = [scratch, &std::env::temp_dir(), Path::new("/dev/shm")].map(Path::to_owned);
    let device = |path: &Path| std::fs::metadata(path).unwrap().dev();
    let here = device(place.folder());
    let other = other.iter().find(|path| device(path) != here).expect("a second file system on this machine");
    format!(
        r#"[features]
posix_fallocate = {{}}
rename_ctime = {{}}
utime_now = {{}}
utimensat = {{}}
secondary_fs = {other:?}

[settings]
naptime = 0.01
allow_remount = {}

[dummy_auth]
entries = [{}, {}]
"#,
        remounts == Remounts::Allowed,
        user("nobody"),
        user("daemon"),
    )
}

/// A user and its own group, as the suite wants them.
fn user(name: &str) -> String {
    let field = |file: &str, key: usize, value: &str, wanted: usize| {
        let text = std::fs::read_to_string(file).unwrap();
        let fields = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let found = fields.filter(|fields| fields.get(key) == Some(&value)).find_map(|fields| {
            let field = fields.get(wanted)?;
            Some((*field).to_owned())
        });
        found.unwrap_or_else(|| panic!("{file} has no {value}"))
    };
    let group = field("/etc/group", 2, &field("/etc/passwd", 0, name, 3), 0);
    format!("[{name:?}, {group:?}]")
}

/// A folder with a `mount` that does not ask the mount's own program: `mount -o remount` would start it again.
fn mount_without_helper(scratch: &Path) -> PathBuf {
    let folder = scratch.join("bin");
    std::fs::create_dir(&folder).unwrap();
    let real = ["/usr/bin/mount", "/bin/mount"].into_iter().find(|path| Path::new(path).exists());
    let script = format!("#!/bin/sh\nexec {} --internal-only \"$@\"\n", real.expect("a mount program"));
    std::fs::write(folder.join("mount"), script).unwrap();
    std::fs::set_permissions(folder.join("mount"), PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

#[test]
fn outcomes_are_read_from_what_the_suite_prints() {
    let (outcomes, details) = parse(
        "link::exdev_target      ok\nchown::x::socket   FAILED\n\tassertion failed: left is not ok\n\
         open::erofs_named  skipped\n\tRemounts are not allowed\n\nSummary: 1 failed, 1 skipped, 1 passed, 3 total\n",
    );
    assert_eq!(outcomes["link::exdev_target"], Outcome::Passed);
    assert_eq!(outcomes["chown::x::socket"], Outcome::Failed);
    assert_eq!(outcomes["open::erofs_named"], Outcome::Skipped);
    assert_eq!(outcomes.len(), 3);
    assert!(details["chown::x::socket"].contains("left is not ok"));
}
