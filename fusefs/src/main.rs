//! `swarmfs`: shows the swarm as an ordinary folder, and is the person's tool for it.

use std::process::ExitCode;

use clap::Parser;
use swarm_fusefs::cli::{self, Cli};

fn main() -> ExitCode {
    cli::main(Cli::parse())
}
