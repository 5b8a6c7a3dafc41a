//! `swarm-tracker`: arguments, build, run, drain.

use std::io::ErrorKind::PermissionDenied;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use swarm_proto::{admin, settings};
use swarm_tracker::config::Flags;
use swarm_tracker::store::StoreError;
use swarm_tracker::{StartError, Tracker, TrackerConfig};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As sysexits.h names them.
const FAILURE: u8 = 1;
const USAGE: u8 = 2;
const CORRUPT: u8 = 65;
const UNREACHABLE: u8 = 69;
const PERMISSION: u8 = 77;
const CONFIG: u8 = 78;

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            // The exit code says it as well, to whoever does not hear this.
            drop(writeln!(io::stderr(), "swarm-tracker: {message}"));
            ExitCode::from(code)
        }
    }
}

fn run(flags: &Flags) -> Result<(), (u8, String)> {
    let config = TrackerConfig::load(flags, std::env::vars()).map_err(|error| (CONFIG, error.to_string()))?;
    if flags.print_config {
        let shown = io::stdout().write_all(settings::to_toml(&config).as_bytes());
        return shown.map_err(|error| (FAILURE, format!("write to standard output: {error}")));
    }
    if config.data.is_none() {
        return Err((USAGE, "no folder for the catalog: give --data DIR, SWARM_DATA, or `data` in a file".to_owned()));
    }
    admin::init_log(&config.log, config.log_format).map_err(|error| (CONFIG, error))?;
    let runtime = admin::runtime().map_err(|error| (UNREACHABLE, error.to_string()))?;
    runtime.block_on(async {
        let tracker = Tracker::start(config).await.map_err(|error| (code_of(&error), error.to_string()))?;
        admin::stop_requested().await.map_err(|error| (UNREACHABLE, error.to_string()))?;
        tracing::info!(how = ?tracker.stop().await, "tracker stopped");
        Ok(())
    })
}

fn code_of(error: &StartError) -> u8 {
    match error {
        StartError::Config { .. } => CONFIG,
        StartError::Catalog(StoreError::Foreign(_) | StoreError::Version { .. }) => CONFIG,
        StartError::Catalog(StoreError::Corrupt(_)) => CORRUPT,
        StartError::Catalog(StoreError::Io { source, .. }) if source.kind() == PermissionDenied => PERMISSION,
        StartError::Bind { source, .. } if source.kind() == PermissionDenied => PERMISSION,
        StartError::Bind { .. } | StartError::Catalog(_) | StartError::Internal(_) => UNREACHABLE,
    }
}
