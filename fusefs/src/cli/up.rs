//! `swarmfs up`: a whole swarm in this process, until Ctrl-C.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use swarm_proto::admin::stop_requested;
use swarm_proto::settings::ByteCount;

use super::connect::{Tool, tracker_failure};
use super::exit::{Exit, Failure, Outcome, of_io};
use super::show::{self, warn};
use super::status::counted;
use crate::mount::MountError;
use crate::mount::doctor::{Finding, System};
use crate::up::state::StateFolder;
use crate::up::{Up, UpConfig, UpError};

/// Run a whole swarm in this process: tracker, seeders, and a mount of it at DIR.
#[derive(Debug, Args)]
#[command(after_long_help = "\
It is a real first node: it keeps what it has, and started again it is the same swarm at the same address.
Seeders and mounts on other machines join it with the commands that it prints.

Examples:
  swarmfs up ./swarm                         on this machine only
  swarmfs up ./swarm --listen 0.0.0.0        for other machines too
  swarmfs up --no-mount --state /srv/swarm   tracker and seeders without a folder")]
pub struct UpCommand {
    /// Folder to mount the swarm at; it is made if need be
    #[arg(value_name = "DIR", required_unless_present = "no_mount", conflicts_with = "no_mount")]
    folder: Option<PathBuf>,
    /// Seeders, each with a store of its own
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    seeders: u16,
    /// Replicas of each segment
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    replicas: u32,
    /// Address to listen on: this machine only, one address of it, or 0.0.0.0 for all
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    listen: IpAddr,
    /// Name or address at which other machines reach this one [default: found out]
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// Where all of it is kept [default: $XDG_STATE_HOME/swarmfs]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Bytes that all seeders may keep together [default: nine tenths of what is free]
    #[arg(long, value_name = "SIZE", default_value = "0", hide_default_value = true)]
    capacity: ByteCount,
    /// Do not mount it: tracker and seeders only
    #[arg(long)]
    no_mount: bool,
    /// Other users may use the mount
    #[arg(long)]
    allow_other: bool,
}

impl UpCommand {
    /// Run it.
    pub async fn run(self, _tool: &Tool) -> Outcome {
        if self.folder.is_some() {
            can_mount(&System::this().check(self.allow_other))?;
        }
        let state = match self.state {
            Some(path) => StateFolder { path: std::path::absolute(&path).unwrap_or(path) },
            None => StateFolder::default_for(|name| std::env::var_os(name).map(PathBuf::from)),
        };
        let config = UpConfig {
            mount_at: self.folder,
            state: state.clone(),
            listen: self.listen,
            advertise: self.advertise,
            seeders: usize::from(self.seeders),
            replicas: self.replicas,
            capacity: self.capacity,
            allow_other: self.allow_other,
        };
        // A start that is interrupted goes on to its end and is then taken down in order.
        let mut asked = Box::pin(stop_requested());
        let mut starting = Box::pin(Up::start(config));
        let (up, interrupted) = tokio::select! {
            up = &mut starting => (up, false),
            stopped = &mut asked => {
                stopped.map_err(|error| Failure::io("wait for signals", &error))?;
                (starting.await, true)
            }
        };
        let up = up.map_err(|error| failure(&error))?;
        if interrupted {
            up.stop().await;
            return Err(Failure::new(Exit::Interrupted, "interrupted"));
        }
        up.notes().iter().for_each(warn);
        greeting(&up, &state).iter().for_each(|line| drop(show::say(line)));
        let outcome = wait(&up, asked).await;
        warn("ending (a second Ctrl-C ends it at once)");
        let ended = tokio::select! {
            ended = up.stop() => ended,
            _ = stop_requested() => return Err(Failure::new(Exit::Interrupted, "ended at once; what was acknowledged is kept")),
        };
        if let Some(reason) = ended.still_mounted {
            return Err(Failure::new(Exit::Failure, reason).hint("leave the folder, then: swarmfs umount DIR"));
        }
        if !ended.clean {
            warn("some transfers were cut off; what was acknowledged is kept");
        }
        outcome
    }
}

async fn wait(up: &Up, asked: impl Future<Output = std::io::Result<()>>) -> Outcome {
    let mut asked = Box::pin(asked);
    tokio::select! {
        stopped = &mut asked => return stopped.map_err(|error| Failure::io("wait for signals", &error)),
        error = up.failed() => return Err(failure(&error)),
        () = up.unmounted() => {}
    }
    // `swarmfs umount` is the other way to end it.
    Ok(())
}

fn greeting(up: &Up, state: &StateFolder) -> Vec<String> {
    let seeders = counted(up.seeders() as u64, "seeder");
    let mut lines = vec![match up.mountpoint() {
        Some(folder) => format!("the swarm is up, mounted at {}", folder.display()),
        None => "the swarm is up".to_owned(),
    }];
    lines.push(format!("  tracker       {}", up.tracker_url()));
    lines.push(format!("  kept in       {} ({seeders})", state.path.display()));
    if *state != StateFolder::default_for(|name| std::env::var_os(name).map(PathBuf::from)) {
        // The other commands look into the default folder only.
        lines.push(format!("  use it here   export SWARM_TRACKER={}", up.tracker_url()));
    }
    let url = if up.is_local() { up.lan_tracker_url() } else { None }.unwrap_or_else(|| up.tracker_url());
    lines.push(format!("  add a seeder  swarm-seeder --tracker {url} --data DIR      (on another machine)"));
    lines.push(format!("  mount it      swarmfs mount {url} DIR      (on another machine)"));
    if up.is_local() {
        lines.push("  only this machine reaches it now: for others start it with --listen 0.0.0.0".to_owned());
    }
    lines.push("Ctrl-C ends it; all it has is kept.".to_owned());
    lines
}

fn can_mount(findings: &[Finding]) -> Outcome {
    let Some(first) = findings.first() else { return Ok(()) };
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    let denied = first.problem.contains("may not");
    let exit = if denied { Exit::Permission } else { Exit::Unreachable };
    Err(Failure::new(exit, format!("cannot mount here\n{}", lines.join("\n")))
        .hint("or run it without a folder: swarmfs up --no-mount"))
}

fn failure(error: &UpError) -> Failure {
    let message = error.to_string();
    match error {
        UpError::State { source, .. } | UpError::Listen { source, .. } => Failure::new(of_io(source.kind()), message),
        UpError::Running { .. } => {
            Failure::new(Exit::Failure, message).hint("end that one first, or give this one a --state DIR of its own")
        }
        UpError::Address(_) => Failure::usage(message),
        UpError::Tracker(_) | UpError::Seeder { .. } => Failure::new(Exit::Unreachable, message),
        UpError::Ask(error) => tracker_failure("ask the new tracker", error),
        UpError::Mount(MountError::System(findings)) => match can_mount(findings) {
            Err(failure) => failure,
            Ok(()) => Failure::new(Exit::Unreachable, message),
        },
        UpError::Mount(_) => Failure::new(Exit::Unreachable, message),
    }
}
