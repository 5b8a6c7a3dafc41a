//! `swarmfs catalog`: save all names of the swarm as one file, and bring them back.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::{Args, Subcommand};
use futures::StreamExt;
use parking_lot::Mutex;
use std::sync::Arc;
use swarm_proto::Fault;
use swarm_seeder::tracker_client::TrackerError;
use tokio_stream::wrappers::ReceiverStream;

use super::connect::{Connection, Tool, tracker_failure};
use super::exit::{Exit, Failure, Outcome};
use super::show::{Out, say, warn};
use super::status::counted;

/// Read at a time; what one part of an import carries.
const PART_BYTES: usize = 256 * 1024;

/// Save all names of the swarm as one file, and bring them back.
#[derive(Debug, Args)]
#[command(after_long_help = "\
The catalog is the only copy of all names and of which segments make which file: keep an export elsewhere.
It holds no content: that is with the seeders.

Examples:
  swarmfs catalog export /backup/names.swarm
  swarmfs catalog export - | zstd > names.zst
  swarmfs catalog import --replace /backup/names.swarm")]
pub struct Catalog {
    /// What to do.
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Write the catalog to a file, or to standard output
    Export {
        /// File to write, or `-`
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Read a catalog from a file, or from standard input
    Import {
        /// File to read, or `-`
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Replace a catalog that is not empty: all names in it are lost
        #[arg(long)]
        replace: bool,
    },
}

impl Catalog {
    /// Run it.
    pub async fn run(self, tool: &Tool) -> Outcome {
        let connection = tool.connect()?;
        match self.action {
            Action::Export { file } if file == Path::new("-") => {
                let mut out = Out::new();
                export(&connection, |part| out.bytes(part)).await?;
                out.finish()
            }
            Action::Export { file } => export_file(&connection, &file).await,
            Action::Import { file, replace } => import(&connection, &file, replace).await,
        }
    }
}

async fn export(connection: &Connection, mut take: impl FnMut(&[u8]) -> Outcome) -> Outcome<u64> {
    let failed = |error: TrackerError| tracker_failure("export the catalog", &error);
    let mut parts = connection.tracker.export().await.map_err(failed)?;
    let mut bytes = 0;
    while let Some(part) = parts.next().await {
        let part = part.map_err(failed)?;
        bytes += part.len() as u64;
        take(&part)?;
    }
    Ok(bytes)
}

/// Under another name first: an export that breaks off must not replace a good one. What is no regular file (a pipe, a
/// device) is written to, and stays what it is.
async fn export_file(connection: &Connection, file: &Path) -> Outcome {
    let failed = |error: io::Error| Failure::io(format!("write {}", file.display()), &error);
    if std::fs::metadata(file).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        let mut to = File::options().write(true).open(file).map_err(failed)?;
        return export(connection, |part| to.write_all(part).map_err(failed)).await.map(|_| ());
    }
    // Through a link, the file behind it is replaced.
    let file = &file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let mut name = file.file_name().ok_or_else(|| Failure::usage("not the name of a file"))?.to_owned();
    name.push(".part");
    let partial = file.with_file_name(name);
    let mut to = File::create(&partial).map_err(failed)?;
    let exported = export(connection, |part| to.write_all(part).map_err(failed)).await;
    let bytes = match exported.and_then(|bytes| to.sync_all().map(|()| bytes).map_err(failed)) {
        Ok(bytes) => bytes,
        Err(failure) => {
            drop(std::fs::remove_file(&partial));
            return Err(failure);
        }
    };
    std::fs::rename(&partial, file).map_err(failed)?;
    say(format!("{}: {}", file.display(), counted(bytes, "byte")))
}

async fn import(connection: &Connection, file: &Path, replace: bool) -> Outcome {
    let failed = |error: io::Error| Failure::io(format!("read {}", file.display()), &error);
    let mut from: Box<dyn Read + Send> = match file == Path::new("-") {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(file).map_err(failed)?),
    };
    let (parts, sent) = tokio::sync::mpsc::channel::<Bytes>(4);
    let broken: Arc<Mutex<Option<io::Error>>> = Arc::default();
    let breaks = broken.clone();
    // A thread of its own: standard input may block for as long as it likes.
    std::thread::spawn(move || {
        loop {
            let mut part = Vec::with_capacity(PART_BYTES);
            match from.by_ref().take(PART_BYTES as u64).read_to_end(&mut part) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => {
                    *breaks.lock() = Some(error);
                    return;
                }
            }
            if parts.blocking_send(part.into()).is_err() {
                return;
            }
        }
    });
    let imported = connection.tracker.import(ReceiverStream::new(sent), replace).await;
    if let Some(error) = broken.lock().take() {
        return Err(failed(error));
    }
    let reply = imported.map_err(|error| {
        let failure = tracker_failure(format!("import {}", file.display()), &error);
        match error.fault() {
            Fault::Exists | Fault::NotEmpty => failure.hint("--replace gives up all names that are there now"),
            // The file, not the tracker's catalog.
            Fault::Invalid | Fault::Corrupt => Failure { exit: Exit::Corrupt, ..failure },
            _ => failure,
        }
    })?;
    say(format!(
        "{} and {} with {}, at revision {}",
        counted(reply.files, "file"),
        counted(reply.directories, "folder"),
        counted(reply.manifests, "manifest"),
        reply.revision
    ))?;
    if reply.swarm_id != reply.file_swarm_id {
        warn(
            "warning: the names are here, but this is still another swarm than the one they come from, and other seeders \
             have joined it: seeders of that one are not let in. To bring that swarm back, import the file into an empty \
             tracker (one with a new --data folder) before any seeder joins it",
        );
    }
    Ok(())
}
