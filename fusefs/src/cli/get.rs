//! `swarmfs get`: copy files and folders out of the swarm.

mod partial;
mod plan;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use futures::StreamExt;
use swarm_proto::settings::{ByteCount, Span};
use swarm_proto::v1::NodeKind;
use swarm_proto::{ByteRange, Manifest};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::partial::{Begun, Owner, Partial, finish_folder, make_entry, partial_path};
use self::plan::{Item, Plan};
use super::cat::copy;
use super::connect::{Connection, Tool, tracker_failure};
use super::exit::{Exit, Failure, Outcome};
use super::fetch::{Fetcher, gone};
use super::name::escape;
use super::problems::Problems;
use super::progress::Progress;
use super::show::{Out, say};
use super::status::counted;
use super::target::{Present, Source, destinations};
use super::tree::LastLink;

/// Files whose manifests are asked for together.
const GROUP: usize = 512;
/// Files on their way at a time.
const FILES: usize = 64;
/// Pieces of one file on their way at a time; the room in memory bounds them too.
const WINDOW: usize = 32;

/// Copy files and folders out of the swarm.
#[derive(Debug, Args)]
#[command(after_long_help = "\
PATH and DEST relate as in `cp -r`: into DEST if it is a folder, else DEST is the name of the copy.
A file grows under the name .NAME.swarm-part and takes its place when it is whole; an interrupted get
goes on where it was when it is run again.

Examples:
  swarmfs get /models/model.bin .            a file into this folder
  swarmfs get /sets/2024 ~/data              a folder, under another name
  swarmfs get /backup/src.tar - | tar x      to standard output")]
pub struct Get {
    /// Files and folders of the swarm
    #[arg(value_name = "PATH", required = true)]
    sources: Vec<OsString>,
    /// Where to, on this machine; `-` is standard output
    #[arg(value_name = "DEST")]
    target: OsString,
    /// How long to wait for data that no peer sends
    #[arg(long, value_name = "TIME", default_value = "30s")]
    read_timeout: Span,
    /// No bar and no summary
    #[arg(short, long)]
    quiet: bool,
}

/// A get under way.
struct Getting {
    fetcher: Fetcher,
    owner: Owner,
    problems: Problems,
    files: AtomicU64,
    fetched: AtomicU64,
    kept: AtomicU64,
    holes: AtomicU64,
}

impl Get {
    /// Run it.
    pub async fn run(self, tool: &Tool) -> Outcome {
        let connection = tool.connect()?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let _stop = stop.clone().drop_guard();
        let getting = Getting {
            fetcher: Fetcher::new(tool, &connection, self.read_timeout.0, &tasks, &stop),
            owner: Owner::possible(),
            problems: Problems::default(),
            files: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            holes: AtomicU64::new(0),
        };
        tokio::select! {
            outcome = self.get(&connection, &getting) => outcome,
            stopped = swarm_proto::admin::stop_requested() => {
                stopped.map_err(|error| Failure::io("wait for signals", &error))?;
                Err(Failure::new(Exit::Interrupted, "interrupted").hint("run the same command again: it goes on"))
            }
        }
    }

    async fn get(&self, connection: &Connection, getting: &Getting) -> Outcome {
        let target = self.target.as_bytes();
        let mut found = Vec::new();
        for source in &self.sources {
            let path = source.as_bytes();
            match connection.need(path, LastLink::Itself).await {
                Ok(node) => found.push((path.to_vec(), node)),
                Err(failure) if failure.exit == Exit::NotFound => getting.problems.add(failure),
                Err(failure) => return Err(failure),
            }
        }
        if found.is_empty() {
            return getting.problems.conclude("files are not there");
        }
        let meta = fs::metadata(&self.target);
        let stream = target == b"-" || meta.as_ref().is_ok_and(|meta| !meta.is_dir() && !meta.is_file());
        if stream {
            return self.to_stream(getting, &found).await;
        }
        let present = match meta {
            Ok(meta) if meta.is_dir() => Present::Folder,
            Ok(_) => Present::Other,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Present::Nothing,
            Err(error) => return Err(Failure::io(escape(target), &error)),
        };
        let sources: Vec<Source> = found
            .iter()
            .map(|(path, node)| Source { path: path.clone(), folder: node.kind() == NodeKind::Directory })
            .collect();
        // The folder itself may be a link; links within it are not followed.
        let real = fs::canonicalize(&self.target).ok().filter(|_| present == Present::Folder);
        let target = real.as_ref().map_or(target, |real| real.as_os_str().as_bytes());
        let mut plan = Plan::default();
        for ((path, node), to) in found.into_iter().zip(destinations(&sources, target, present)?) {
            let to = PathBuf::from(std::ffi::OsStr::from_bytes(&to));
            plan.walk(&connection.tracker, Item { path, node, to }).await?;
        }
        plan.failures.drain(..).for_each(|failure| getting.problems.add(failure));
        let progress = Progress::bytes(Some(plan.bytes()), self.quiet);
        progress.follow(getting.tree(plan), || getting.position()).await?;
        if !self.quiet {
            say(getting.summary())?;
        }
        getting.problems.conclude("files and folders were not copied")
    }

    async fn to_stream(&self, getting: &Getting, found: &[(Vec<u8>, swarm_proto::v1::Node)]) -> Outcome {
        if self.target == "-" {
            let mut out = Out::new();
            for (path, node) in found {
                copy(&getting.fetcher, path, node, &mut out).await?;
            }
            out.finish()?;
        } else {
            let shown = escape(self.target.as_bytes());
            let file = fs::OpenOptions::new().write(true).open(&self.target);
            let mut file = file.map_err(|error| Failure::io(shown, &error))?;
            for (path, node) in found {
                copy(&getting.fetcher, path, node, &mut file).await?;
            }
        }
        getting.problems.conclude("files are not there")
    }
}

impl Getting {
    fn position(&self) -> (u64, String) {
        let bytes = [&self.fetched, &self.kept, &self.holes].map(|counter| counter.load(Ordering::Relaxed));
        (bytes.iter().sum(), format!("{} files", self.files.load(Ordering::Relaxed)))
    }

    fn summary(&self) -> String {
        let files = counted(self.files.load(Ordering::Relaxed), "file");
        let (fetched, kept) = (self.fetched.load(Ordering::Relaxed), self.kept.load(Ordering::Relaxed));
        format!("{files}: {} fetched and verified, {} already here", ByteCount(fetched), ByteCount(kept))
    }

    async fn tree(&self, plan: Plan) -> Outcome {
        let Plan { folders, files, entries, .. } = plan;
        let owner = self.owner;
        let (folders, failures) = blocking(move || {
            let mut failures = Vec::new();
            let made: Vec<Item> = folders
                .into_iter()
                .filter(|item| match make_folder(&item.to) {
                    Ok(new) => new,
                    Err(error) => {
                        failures.push(Failure::io(shown(&item.to), &error));
                        false
                    }
                })
                .collect();
            (made, failures)
        })
        .await?;
        failures.into_iter().for_each(|failure| self.problems.add(failure));
        let mut rest = files.into_iter();
        loop {
            let group: Vec<Item> = rest.by_ref().take(GROUP).collect();
            if group.is_empty() {
                break;
            }
            let nodes: Vec<_> = group.iter().map(|item| &item.node).collect();
            let manifests = self.fetcher.manifests(&nodes).await;
            let manifests = manifests.map_err(|error| tracker_failure("ask for manifests", &error))?;
            let stopped = futures::stream::iter(group.into_iter().zip(manifests))
                .map(|(item, manifest)| async move {
                    let outcome = match manifest {
                        Some(manifest) => self.file(&item, manifest).await,
                        None => Err(gone(&item.path)),
                    };
                    outcome.err()
                })
                .buffer_unordered(FILES)
                .any(|failure| async move {
                    let fatal = failure.as_ref().is_some_and(|failure| failure.exit == Exit::Interrupted);
                    failure.into_iter().for_each(|failure| self.problems.add(failure));
                    fatal
                })
                .await;
            if stopped {
                return self.problems.conclude("files were not copied");
            }
        }
        let failures = blocking(move || {
            let made = entries.iter().map(|item| (&item.to, make_entry(&item.to, &item.node, owner)));
            // Children first, so that nothing changes a folder's time after it was set.
            let finished = folders.iter().rev().map(|item| (&item.to, finish_folder(&item.to, &item.node, owner)));
            let failed = made.chain(finished).filter_map(|(to, done)| Some((to, done.err()?)));
            failed.map(|(to, error)| Failure::io(shown(to), &error)).collect::<Vec<_>>()
        })
        .await?;
        failures.into_iter().for_each(|failure| self.problems.add(failure));
        Ok(())
    }

    async fn file(&self, item: &Item, manifest: Arc<Manifest>) -> Outcome {
        let (to, wanted) = (item.to.clone(), manifest.clone());
        let begun = blocking(move || Partial::begin(&to, &wanted)).await?.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                Failure::new(Exit::Failure, format!("{}: another process is getting it", shown(&item.to)))
            }
            _ => {
                // What is in the way may lie where the unfinished file would.
                let partial = partial_path(&item.to);
                let in_the_way = partial.symlink_metadata().is_ok_and(|found| !found.is_file());
                Failure::io(shown(if in_the_way { &partial } else { &item.to }), &error)
            }
        })?;
        let Begun::Lacking(partial, lacking) = begun else {
            self.kept.fetch_add(manifest.size(), Ordering::Relaxed);
            self.files.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        let extent = |index: &usize| ByteRange::at(manifest.start_of(*index), manifest.extents()[*index].length());
        let wanted: u64 = lacking.iter().map(|index| extent(index).len()).sum();
        let holes = manifest.extents().iter().filter(|extent| matches!(extent, swarm_proto::Extent::Hole { .. }));
        let holes: u64 = holes.map(swarm_proto::Extent::length).sum();
        self.holes.fetch_add(holes, Ordering::Relaxed);
        self.kept.fetch_add(manifest.size() - holes - wanted, Ordering::Relaxed);
        let partial = Arc::new(partial);
        let parts: Vec<_> = lacking.iter().flat_map(|index| Fetcher::pieces(&manifest, extent(index))).collect();
        let mut writes = futures::stream::iter(parts)
            .map(|part| {
                let partial = partial.clone();
                async move {
                    let piece = self.fetcher.fetch(&item.path, part).await?;
                    let length = piece.in_file.len();
                    blocking(move || partial.write(piece.in_file.start, &piece.bytes))
                        .await?
                        .map_err(|error| Failure::io(shown(&item.to), &error))?;
                    self.fetched.fetch_add(length, Ordering::Relaxed);
                    Ok::<_, Failure>(())
                }
            })
            .buffer_unordered(WINDOW);
        while let Some(written) = writes.next().await {
            written?;
        }
        drop(writes);
        let partial = Arc::into_inner(partial)
            .ok_or_else(|| Failure::new(Exit::Failure, format!("{}: still being written", shown(&item.to))))?;
        let (node, owner) = (item.node.clone(), self.owner);
        blocking(move || partial.finish(&node, owner)).await?.map_err(|error| Failure::io(shown(&item.to), &error))?;
        self.files.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Make a folder, open to us while it is filled; false if it was there.
fn make_folder(path: &Path) -> io::Result<bool> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        // A link to a folder is not followed: it would lead the rest of the tree elsewhere.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match fs::symlink_metadata(path)?.is_dir() {
            true => Ok(false),
            false => Err(io::ErrorKind::NotADirectory.into()),
        },
        Err(error) => Err(error),
    }
}

fn shown(path: &Path) -> String {
    escape(path.as_os_str().as_bytes())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Failure::new(Exit::Interrupted, "interrupted"))
}
