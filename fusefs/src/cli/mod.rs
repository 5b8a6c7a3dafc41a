//! The commands of `swarmfs`, one file each. Not here: what they do to the swarm, which is the library's.
//!
//! Every command is a struct of arguments with `async fn run(self, tool: &Tool) -> Outcome`; results go
//! to standard output, everything else to standard error.

mod cat;
mod catalog;
pub mod connect;
mod doctor;
pub mod exit;
mod fetch;
mod get;
mod ls;
mod mkdir;
mod mount;
mod mv;
pub mod name;
mod peers;
mod problems;
mod progress;
mod put;
mod rm;
mod show;
mod spool;
mod stat;
mod status;
pub mod target;
mod tree;
mod umount;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use swarm_proto::admin;

use self::connect::{Tool, ToolFlags};
use self::exit::{Exit, Failure, Outcome};

/// Shows the swarm as an ordinary folder, and is the person's tool for it.
#[derive(Debug, Parser)]
#[command(name = "swarmfs", version, about, arg_required_else_help = true, max_term_width = 100)]
#[command(after_long_help = AFTER_HELP)]
pub struct Cli {
    /// Flags that all commands share.
    #[command(flatten)]
    pub flags: ToolFlags,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  swarmfs up ./swarm                         a whole swarm on this machine, mounted at ./swarm
  swarmfs put -t swarm://host:7070 data /    copy a folder into the swarm
  SWARM_TRACKER=host:7070 swarmfs ls -l /    the tracker may stand in the environment

Exit codes:
  0 done, 1 other failures, 2 usage, 65 data corrupt, 66 no such path, 69 unreachable,
  77 not permitted, 78 a setting is wrong, 130 interrupted";

/// What to do.
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum Command {
    /// Run a whole swarm in this process: tracker, seeders, and a mount of it at DIR
    Up(up::UpCommand),
    /// Copy files, folders and standard input into the swarm
    Put(put::Put),
    /// Copy files and folders out of the swarm
    Get(get::Get),
    /// Write files to standard output
    Cat(cat::Cat),
    /// List a folder
    Ls(ls::Ls),
    /// Show all that is known of files: attributes, segments, and who holds them
    Stat(stat::Stat),
    /// Remove files and folders
    Rm(rm::Rm),
    /// Rename and move files and folders within the swarm
    Mv(mv::Mv),
    /// Make folders
    Mkdir(mkdir::Mkdir),
    /// Show the health of the swarm
    Status(status::Status),
    /// List the peers of the swarm
    Peers(peers::Peers),
    /// Save all names of the swarm as one file, and bring them back
    Catalog(catalog::Catalog),
    /// Say what stands in the way of a mount here, and the line that mends it
    Doctor(doctor::Doctor),
    /// Show a swarm as a folder
    Mount(Box<mount::MountCommand>),
    /// The background process of `mount`
    #[command(hide = true)]
    MountInBackground,
    /// End a mount
    Umount(umount::UmountCommand),
    /// List, retry and discard what was written and could not be saved
    Spool(spool::SpoolCommand),
}

/// Run the program to its exit code.
pub fn main(cli: Cli) -> ExitCode {
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            show::warn(&failure);
            failure.exit.into()
        }
    }
}

fn run(cli: Cli) -> Outcome {
    // A mount has settings, a log and a runtime of its own.
    match cli.command {
        Command::Mount(command) => command.run(&cli.flags),
        Command::MountInBackground => mount::in_background(),
        Command::Umount(command) => command.run(),
        Command::Spool(command) => command.run(),
        command => run_tool(&cli.flags, command),
    }
}

fn run_tool(flags: &ToolFlags, command: Command) -> Outcome {
    let tool = Tool::new(flags)?;
    if flags.print_config {
        return show::say(tool.settings_text().trim_end());
    }
    admin::init_log(tool.log_filter(), admin::LogFormat::Text).map_err(|error| Failure::new(Exit::Config, error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("start the runtime", &error))?;
    let outcome = runtime.block_on(dispatch(command, &tool));
    // A blocking read of a terminal or a dead disk must not hold the exit up.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    outcome
}

async fn dispatch(command: Command, tool: &Tool) -> Outcome {
    match command {
        Command::Up(command) => command.run(tool).await,
        Command::Put(command) => command.run(tool).await,
        Command::Get(command) => command.run(tool).await,
        Command::Cat(command) => command.run(tool).await,
        Command::Stat(command) => command.run(tool).await,
        Command::Rm(command) => command.run(tool).await,
        Command::Mv(command) => command.run(tool).await,
        Command::Catalog(command) => command.run(tool).await,
        Command::Doctor(command) => command.run(tool).await,
        Command::Mkdir(command) => command.run(tool).await,
        Command::Ls(command) => command.run(tool).await,
        Command::Status(command) => command.run(tool).await,
        Command::Peers(command) => command.run(tool).await,
        Command::Mount(_) | Command::MountInBackground | Command::Umount(_) | Command::Spool(_) => {
            Err(Failure::usage("this command has no connection"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
