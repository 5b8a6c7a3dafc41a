//! `swarmfs put`: copy files, folders and standard input into the swarm.

mod commit;
mod entries;
mod files;
pub(crate) mod scan;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use swarm_proto::settings::ByteCount;
use swarm_proto::v1::NodeKind;
use swarm_proto::{CHUNK_BYTES, MAX_SEGMENT_BYTES};
use swarm_seeder::store::AckLevel;
use swarm_seeder::swarm::upload::{UploadConfig, Uploader};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::commit::Committer;
use self::files::Putting;
use self::scan::{Links, Plan};
use super::connect::{Connection, Tool, tracker_failure};
use super::exit::{Exit, Failure, Outcome};
use super::mkdir::own;
use super::name::escape;
use super::problems::Problems;
use super::progress::Progress;
use super::show::say;
use super::status::counted;
use super::target::{Present, Source, destinations, folder_of, last_name};
use super::tree::LastLink;

/// Bytes after which seeders write to their disks in the background.
const SYNC_EVERY_BYTES: u64 = 128 << 20;
/// How long the end of what is under way is waited for after Ctrl-C.
const DRAIN: Duration = Duration::from_secs(3);

/// Copy files, folders and standard input into the swarm.
#[derive(Debug, Args)]
#[command(after_long_help = "\
SRC and PATH relate as in `cp -r`: into PATH if it is a folder, else PATH is the name of the copy.
Only segments that the swarm lacks are sent; an interrupted put goes on when it is run again.

Examples:
  swarmfs put model.bin /models/             a file into a folder
  swarmfs put -p ~/data /sets/2024           a folder, under another name; makes /sets if need be
  tar c src | swarmfs put - /backup/src.tar  standard input")]
pub struct Put {
    /// Files and folders, or `-` for standard input
    #[arg(value_name = "SRC", required = true)]
    sources: Vec<OsString>,
    /// Where to, in the swarm
    #[arg(value_name = "PATH")]
    target: OsString,
    /// Seeders that each segment is sent to [default: the swarm's setting]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    replicas: Option<u32>,
    /// What a copy survives when put returns: kill -9 of every process, or also a power cut
    #[arg(long, value_enum, default_value_t = Level::Fsync)]
    level: Level,
    /// Length at which files are cut [default: 4MiB]
    #[arg(long, value_name = "SIZE")]
    segment_size: Option<ByteCount>,
    /// Make the folders above PATH if they are missing
    #[arg(short, long)]
    parents: bool,
    /// Copy what symlinks lead to, not the links
    #[arg(short = 'L', long)]
    dereference: bool,
    /// No bar and no summary
    #[arg(short, long)]
    quiet: bool,
}

/// How much an acknowledgement survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    /// kill -9 of every process
    Close,
    /// A power cut
    Fsync,
}

impl Put {
    /// Run it.
    pub async fn run(self, tool: &Tool) -> Outcome {
        let connection = tool.connect()?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let outcome = tokio::select! {
            outcome = self.put(tool, &connection, &tasks, &stop) => outcome,
            stopped = swarm_proto::admin::stop_requested() => {
                stopped.map_err(|error| Failure::io("wait for signals", &error))?;
                Err(Failure::new(Exit::Interrupted, "interrupted")
                    .hint("run the same command again: only what is lacking is sent"))
            }
        };
        stop.cancel();
        tasks.close();
        // What is still under way is a promise that nobody needs: it ends by itself.
        drop(tokio::time::timeout(DRAIN, tasks.wait()).await);
        outcome
    }

    async fn put(
        &self,
        tool: &Tool,
        connection: &Connection,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Outcome {
        let status = connection.tracker.status(0).await.map_err(|error| tracker_failure("ask for status", &error))?;
        let segment_bytes = self.segment_size.unwrap_or(tool.settings.segment_size).0;
        let segment_bytes = u32::try_from(segment_bytes)
            .ok()
            .filter(|bytes| (CHUNK_BYTES..=MAX_SEGMENT_BYTES).contains(bytes))
            .ok_or_else(|| Failure::usage("--segment-size must be 16KiB to 64MiB"))?;
        let replicas = self.replicas.unwrap_or(if status.replicas == 0 { 3 } else { status.replicas });
        let config = UploadConfig {
            segment_bytes,
            replicas,
            min_replicas: status.min_replicas.clamp(1, replicas),
            sync_every_bytes: (self.level == Level::Fsync).then_some(SYNC_EVERY_BYTES),
            in_flight_bytes: tool.settings.in_flight.0,
            ..UploadConfig::default()
        };
        let uploader = Uploader::new(Arc::new(connection.tracker.clone()), config, tasks, stop.clone());
        let level = match self.level {
            Level::Close => AckLevel::Close,
            Level::Fsync => AckLevel::Fsync,
        };
        let committer = Committer::start(connection.tracker.clone(), uploader.clone(), level, tasks, stop.clone());
        let putting = Putting::new(connection.tracker.clone(), uploader, committer);
        if self.sources.iter().any(|source| source == "-") {
            self.put_stdin(connection, &putting).await?;
        } else {
            self.put_tree(connection, &putting).await?;
        }
        self.conclude(&putting, replicas, status.seeders_live)
    }

    async fn put_stdin(&self, connection: &Connection, putting: &Putting) -> Outcome {
        let target = self.target.as_bytes();
        if self.sources.len() > 1 {
            return Err(Failure::usage("`-` cannot be mixed with other sources"));
        }
        let there = connection.find(target, LastLink::Follow).await?;
        let name = last_name(target).filter(|_| !target.ends_with(b"/"));
        let (Some(name), false) = (name, there.is_some_and(|node| node.kind() == NodeKind::Directory)) else {
            return Err(Failure::usage(format!("{}: standard input needs the name of a file", escape(target))));
        };
        let parent = self.parent(connection, folder_of(target)).await?;
        let progress = Progress::bytes(None, self.quiet);
        let put = putting.stream(std::io::stdin(), parent, name, own(0o644));
        progress.follow(put, || putting.position()).await
    }

    async fn put_tree(&self, connection: &Connection, putting: &Putting) -> Outcome {
        let target = self.target.as_bytes();
        let links = if self.dereference { Links::Follow } else { Links::Copy };
        let paths: Vec<PathBuf> = self.sources.iter().map(PathBuf::from).collect();
        let (mut sources, mut there) = (Vec::new(), Vec::new());
        for path in paths {
            match is_folder(&path, links) {
                Ok(folder) => {
                    sources.push(Source { path: path.as_os_str().as_bytes().to_vec(), folder });
                    there.push(path);
                }
                Err(error) => putting.problems.add(Failure::io(escape(path.as_os_str().as_bytes()), &error)),
            }
        }
        if sources.is_empty() {
            return putting.problems.conclude("sources are not there");
        }
        let present = match connection.find(target, LastLink::Follow).await? {
            None => Present::Nothing,
            Some(node) if node.kind() == NodeKind::Directory => Present::Folder,
            Some(_) => Present::Other,
        };
        let mut plan = Plan::default();
        let mut walks = Vec::new();
        for (path, destination) in there.into_iter().zip(destinations(&sources, target, present)?) {
            // The contents of a folder go onto the target itself if no name is left.
            let name = match present == Present::Folder && last_name(path.as_os_str().as_bytes()).is_none() {
                true => None,
                false => Some(
                    last_name(&destination)
                        .ok_or_else(|| Failure::usage(format!("{}: not the name of a copy", escape(&destination))))?,
                ),
            };
            let parent = match name {
                Some(_) => self.parent(connection, folder_of(&destination)).await?,
                None => connection.need_folder(&destination).await?.inode,
            };
            walks.push((path, plan.existing(parent), name.map(<[u8]>::to_vec)));
        }
        let mut plan = tokio::task::spawn_blocking(move || {
            for (path, parent, name) in walks {
                plan.walk(&path, parent, name.as_deref(), links);
            }
            plan
        })
        .await
        .map_err(|_| Failure::new(Exit::Failure, "read the sources: the reader failed"))?;
        plan.failures.drain(..).for_each(|failure| putting.problems.add(failure));
        let progress = Progress::bytes(Some(plan.bytes()), self.quiet);
        progress.follow(putting.tree(plan), || putting.position()).await
    }

    async fn parent(&self, connection: &Connection, folder: &[u8]) -> Outcome<u64> {
        if self.parents {
            return Ok(connection.make_folders(folder, own(0o755)).await?.inode);
        }
        connection.need_folder(folder).await.map(|node| node.inode).map_err(|failure| match failure.exit {
            Exit::NotFound => failure.hint("-p makes the folders that are missing"),
            _ => failure,
        })
    }

    fn conclude(&self, putting: &Putting, wanted: u32, seeders: u32) -> Outcome {
        let stats = putting.uploader.stats();
        if !self.quiet {
            let (files, bytes) = putting.done();
            let replicas = match stats.fewest_replicas {
                0 => String::new(),
                // There were enough: some failed or came back meanwhile.
                fewest if fewest < u64::from(wanted) && seeders >= wanted => format!(
                    "; some of it has {} instead of {wanted}, as a seeder was away: put it again to add the rest",
                    counted(fewest, "replica")
                ),
                fewest if fewest < u64::from(wanted) => format!(
                    "; {} instead of {wanted}, with {} up",
                    counted(fewest, "replica"),
                    // Counted before it began; some may have come since.
                    counted(u64::from(seeders).max(fewest), "seeder")
                ),
                _ => format!("; {}", counted(u64::from(wanted), "replica")),
            };
            say(format!(
                "{}, {}: {} sent, {} already there{replicas}",
                counted(files, "file"),
                ByteCount(bytes),
                ByteCount(stats.sent_bytes),
                ByteCount(stats.skipped_bytes),
            ))?;
        }
        putting.problems.conclude("files and folders were not copied")
    }
}

fn is_folder(path: &Path, links: Links) -> std::io::Result<bool> {
    let meta = match links {
        Links::Copy => std::fs::symlink_metadata(path)?,
        Links::Follow => std::fs::metadata(path)?,
    };
    Ok(meta.is_dir())
}

/// What a failed upload means to a person.
pub(crate) fn upload_failure(what: &[u8], error: &swarm_seeder::swarm::upload::UploadError) -> Failure {
    use swarm_seeder::swarm::upload::UploadError;
    let what = escape(what);
    let exit = match error {
        UploadError::Tracker(error) => return tracker_failure(what, error),
        UploadError::Read(error) => return Failure::io(what, error),
        UploadError::NoSeeder | UploadError::TooFew { .. } => Exit::Unreachable,
        UploadError::Stopping => Exit::Interrupted,
        UploadError::Full { .. } | UploadError::Changing | UploadError::TooLarge(_) => Exit::Failure,
    };
    let failure = Failure::new(exit, format!("{what}: {error}"));
    match error {
        UploadError::NoSeeder => failure.hint(
            "start one: swarm-seeder --tracker ADDRESS --data DIR; if seeders run and the tracker lost its catalog, \
             `swarmfs catalog import` comes first",
        ),
        UploadError::Full { .. } => {
            failure.hint("add a seeder, or give one a larger disk; `swarmfs peers` shows who has room")
        }
        UploadError::TooFew { .. } => failure.hint("`swarmfs peers` shows which seeders are up"),
        _ => failure,
    }
}

/// Failures of a command that goes on with the rest.
pub(crate) type SharedProblems = Arc<Problems>;
