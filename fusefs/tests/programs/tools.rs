//! Test suites from crates.io, built once into the target folder.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::program::program;

/// The program of a crate in exactly this version; a crate that cannot be had fails the test.
///
/// Built without optimisation and debug information: building it is most of its time.
#[track_caller]
pub(crate) fn installed(name: &str, version: &str) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools");
    let root = tools.join(format!("{name}-{version}"));
    let binary = root.join("bin").join(name);
    if !binary.exists() {
        let installed = program(env!("CARGO"))
            .args(&["install", "--locked", "--debug", "--quiet", "--version", &format!("={version}"), "--root"])
            .arg(&root)
            .arg("--target-dir")
            .arg(tools.join("build"))
            .env("CARGO_PROFILE_DEV_DEBUG", "false")
            .env("CARGO_INCREMENTAL", "0")
            .arg(name)
            .within(Duration::from_secs(600))
            .run();
        assert!(installed.status.success(), "{name} {version} cannot be installed: {}", installed.says());
    }
    binary
}
