//! The program `swarm-seeder`: arguments, start, wait, drain.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use prometheus::Registry;
use swarm_proto::admin;
use swarm_proto::settings::to_toml;
use swarm_seeder::peer::Stopped;
use swarm_seeder::service::{Flags, Seeder, SeederConfig, raise_file_limit};

fn main() -> ExitCode {
    let flags = Flags::parse();
    match admin::runtime() {
        Ok(runtime) => runtime.block_on(run(&flags)),
        Err(error) => failed(&format!("start threads: {error}"), 71),
    }
}

async fn run(flags: &Flags) -> ExitCode {
    let config = match SeederConfig::load(flags, std::env::vars()) {
        Ok(config) => config,
        Err(error) => return failed(&error, 78),
    };
    if flags.print_config {
        return match io::stdout().write_all(to_toml(&config).as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&format!("write to standard output: {error}"), 1),
        };
    }
    if let Err(error) = admin::init_log(&config.log, config.log_format) {
        return failed(&error, 78);
    }
    raise_file_limit();
    let seeder = match Seeder::start(config, &Registry::new()).await {
        Ok(seeder) => seeder,
        Err(error) => return failed(&error, error.exit_code()),
    };
    let failure = tokio::select! {
        failure = seeder.failed() => Some(failure),
        asked = admin::stop_requested() => {
            if let Err(error) = asked {
                tracing::error!(%error, "listen for signals");
            }
            None
        }
    };
    match seeder.stop().await {
        Stopped::Clean => tracing::info!("ended clean"),
        Stopped::Forced => tracing::warn!("ended forced: something was cut off"),
    }
    match failure {
        Some(error) => failed(&error, error.exit_code()),
        None => ExitCode::SUCCESS,
    }
}

fn failed(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    // The exit code says it as well, to whoever does not hear this.
    drop(writeln!(io::stderr(), "swarm-seeder: {error}"));
    ExitCode::from(code)
}
