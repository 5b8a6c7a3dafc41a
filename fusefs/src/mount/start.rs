//! Putting a mount together, and taking it down.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::Registry;
use swarm_proto::admin::{self, Readiness};
use swarm_proto::{MAX_SEGMENT_BYTES, SegmentId, SwarmId};
use swarm_seeder::announcer::Binding;
use swarm_seeder::peer::{Peer, PeerConfig, PeerError, Stopped};
use swarm_seeder::store::StoreError;
use swarm_seeder::store::cache::CacheStore;
use swarm_seeder::swarm::upload::{UploadConfig, Uploader};
use swarm_seeder::swarm::{Swarm, SwarmConfig};
use swarm_seeder::tracker_client::{TrackerAddress, TrackerClient, TrackerClientConfig, TrackerError};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::cache;
use super::config::MountConfig;
use super::content::EngineContent;
use super::doctor::{Finding, System};
use super::folder::{self, FolderError};
use super::locating::Locating;
use super::room;
use super::status::MountStatus;
use super::table;
use super::unmount::{self, UnmountError};
use crate::fs::catalog::Catalog;
use crate::fs::invalidation::Invalidations;
use crate::fs::node::Kind;
use crate::fs::{Access, FileSystem, FileSystemConfig, Writing};
use crate::fuse::{Runtimes, Session, SessionConfig};
use crate::read::{ReadConfig, ReadEngine, SentOrElse};
use crate::write::{Debts, Spool};

/// How long changes are waited for before the folder is shown; without them it works, only slower.
const LIVE_PATIENCE: Duration = Duration::from_secs(2);
const LIVE_POLL: Duration = Duration::from_millis(5);
/// How long the kernel's threads may take to end after the unmount; users of a detached folder keep them.
const SESSION_PATIENCE: Duration = Duration::from_secs(2);
/// How long other peers may take to finish what they fetch from here.
const DRAIN_PATIENCE: Duration = Duration::from_secs(3);
/// How long the rest may take: the cache makes its last bits durable.
const TASKS_PATIENCE: Duration = Duration::from_secs(10);
/// Folder in the cache's in which unsaved bytes lie.
const SPOOL: &str = "spool";
/// Folder in the spool's in which lies what seeders lack of what is saved.
const OWED: &str = "owed";
/// Why the kernel does not write by itself, unless it is to.
const NOT_ASKED_FOR: &str = "it was not asked for (--passthrough-writes)";
/// Files up to this length are sent to seeders without asking the tracker whether they have them.
const UNASKED_BYTES: u64 = 64 * 1024;
/// What is kept in memory of the bytes of such files: they are often read soon after they were written.
const RECENT_BYTES: usize = 32 << 20;
/// Bytes of the spool's disk that are never used.
pub(super) const SPOOL_FLOOR_BYTES: u64 = 64 << 20;

/// Why a mount did not start.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// The tracker did not answer, or refused.
    #[error("{0}")]
    Tracker(#[from] TrackerError),
    /// The swarm has no such folder.
    #[error("the swarm has no folder /{0}")]
    NoSuchFolder(String),
    /// The system lacks something.
    #[error("{}", .0.iter().map(Finding::to_string).collect::<Vec<_>>().join("\n"))]
    System(Vec<Finding>),
    /// The folder cannot be mounted over.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The cache cannot be used.
    #[error("{0}")]
    Cache(#[from] StoreError),
    /// What is written cannot be kept.
    #[error("keep what is written in {}: {source}", folder.display())]
    Spool {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It cannot listen for other peers.
    #[error("{0}")]
    Peer(#[from] PeerError),
    /// The operator's endpoint cannot be bound.
    #[error("show metrics at {address}: {source}")]
    Admin {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel or its helper refused.
    #[error("mount {}: {source}", folder.display())]
    Kernel {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A mounted swarm. Dropping it leaves the folder mounted until the process ends: call [`Self::unmount`].
pub struct Mount {
    fs: Arc<FileSystem>,
    peer: Peer<CacheStore>,
    session: Session,
    mountpoint: PathBuf,
    device: String,
    source: String,
    notes: Vec<String>,
    admin: Option<SocketAddr>,
    ready: Readiness,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Last: it is of no use to anybody then.
    _names: NamesRuntime,
}

/// The thread of names; see [`Runtimes`].
struct NamesRuntime(Option<Runtime>);

impl NamesRuntime {
    fn start() -> Result<(Self, Handle), MountError> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("names").enable_all().build();
        let no_thread = |error: std::io::Error| Finding {
            part: "threads".to_owned(),
            problem: format!("no thread can be started: {error}"),
            remedy: "raise the limit of processes, see `ulimit -u`".to_owned(),
        };
        let runtime = runtime.map_err(|error| MountError::System(vec![no_thread(error)]))?;
        let handle = runtime.handle().clone();
        Ok((Self(Some(runtime)), handle))
    }
}

impl Drop for NamesRuntime {
    fn drop(&mut self) {
        // To wait for it is forbidden where this may be dropped.
        self.0.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

/// Ends all that a start has begun, unless it came to its end.
struct Undo {
    stop: CancellationToken,
    tasks: TaskTracker,
    /// The folder, if it was made for this.
    made: Option<PathBuf>,
    finished: bool,
}

impl Drop for Undo {
    fn drop(&mut self) {
        if !self.finished {
            self.stop.cancel();
            self.tasks.close();
            if let Some(folder) = &self.made {
                // Somebody may have put something there meanwhile; then it stays.
                let _ = std::fs::remove_dir(folder);
            }
        }
    }
}

impl Mount {
    /// Mount the folder of the swarm that `config.tracker` names at `mountpoint`; usable when this returns.
    ///
    /// Shape: `ends_with_mount`: the process has nothing else to do.
    pub async fn start(config: MountConfig, mountpoint: &Path, ends_with_mount: bool) -> Result<Self, MountError> {
        config.check().map_err(MountError::Setting)?;
        let config = config.absolute().map_err(MountError::Setting)?;
        let address: TrackerAddress =
            config.tracker.parse().map_err(|error| MountError::Setting(format!("tracker: {error}")))?;
        let system = System::this();
        let findings = system.check(config.allow_other);
        if !findings.is_empty() {
            return Err(MountError::System(findings));
        }
        let (wanted, nonempty) = (mountpoint.to_owned(), config.nonempty);
        let prepared = blocking(move || folder::prepare(&wanted, nonempty)).await?;
        let mut notes = Vec::new();
        if prepared.cleared {
            notes.push(format!("cleared a dead mount at {}", prepared.path.display()));
        }
        if prepared.made {
            notes.push(format!("made the folder {}", prepared.path.display()));
        }

        let mut undo = Undo {
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            made: prepared.made.then(|| prepared.path.clone()),
            finished: false,
        };
        let (stop, tasks) = (undo.stop.clone(), undo.tasks.clone());
        let registry = Registry::new();
        let cache_dir = config.cache_folder(&address, &prepared.path, |name| std::env::var_os(name).map(PathBuf::from));
        let cache = cache::open(&config, &cache_dir).await?;
        let me = cache::peer_id(&cache_dir)
            .map_err(|source| StoreError::Io { doing: "remember who this peer is", source: Arc::new(source) })?;

        let (names_runtime, names) = NamesRuntime::start()?;
        let tracker = within(&names, || {
            TrackerClient::new(TrackerClientConfig {
                address: address.at_root(),
                me: Some(me),
                zone: config.zone.clone(),
                patience: config.metadata_timeout.0,
            })
        })
        .map_err(|error| MountError::Setting(format!("tracker: {error}")))?;
        let ours = tracker.bind().await?;
        let root = Catalog::resolve(&tracker, bytes::Bytes::copy_from_slice(address.sub().as_bytes()))
            .await?
            .filter(|node| node.kind == Kind::Directory)
            .ok_or_else(|| MountError::NoSuchFolder(address.sub().to_owned()))?;

        let swarm_config = SwarmConfig {
            download_limit: config.download_limit,
            local_reads: config.local_reads,
            ..SwarmConfig::new(me, config.zone.clone())
        };
        let locating = Arc::new(Locating::new(tracker.clone()));
        let swarm = Swarm::new(swarm_config, locating.clone(), &registry, tasks.clone(), stop.clone());
        let peer_config = PeerConfig {
            id: me,
            sharing: config.sharing(),
            zone: config.zone.clone(),
            host: config.host.clone(),
            binding: only(ours, tracker.address().clone()),
        };
        let peer =
            Peer::start(peer_config, cache.clone(), swarm.clone(), tracker.clone(), &registry, &tasks, stop.clone())
                .await?;
        let read_config = ReadConfig {
            max_readahead: config.max_readahead.0,
            read_timeout: config.read_timeout.0,
            memory: config.memory.map(|memory| memory.0),
        };
        let sent = locating.clone();
        let source = Arc::new(SentOrElse::new(move |id: &SegmentId| sent.sent(id), swarm));
        let engine = ReadEngine::new(cache.clone(), source, read_config, &registry, tasks.clone(), stop.clone());

        let (invalidations, forget) = Invalidations::new();
        let tracker = Arc::new(tracker);
        let content = Arc::new(EngineContent(engine));
        let writing = match config.read_only {
            true => None,
            false => {
                let (writing, uploader) = writing(&config, &cache_dir, &tracker, ours, &tasks, &stop, &names).await?;
                locating.remember(uploader);
                room::have_cache_give_way(writing.spool(), &cache, &cache_dir);
                Some(writing)
            }
        };
        let no_passthrough = (!system.may_mount).then(|| "only root may have the kernel do it".to_owned());
        let no_passed_writes = match &writing {
            Some(writing) if config.passthrough_writes => match &no_passthrough {
                Some(reason) => Some(reason.clone()),
                None => {
                    let spool = writing.spool().clone();
                    blocking(move || spool.tells_of_writes()).await.err()
                }
            },
            _ => Some(NOT_ASKED_FOR.to_owned()),
        };
        let passes_writes = no_passed_writes.is_none();
        let fs_config = FileSystemConfig {
            root: root.inode,
            metadata_ttl: config.metadata_ttl.0,
            metadata_timeout: config.metadata_timeout.0,
            read_timeout: config.read_timeout.0,
            offline_ok: config.offline_ok,
            access: if config.read_only { Access::ReadOnly } else { Access::ReadWrite },
            no_passthrough,
            no_passed_writes,
        };
        let locator = tracker.clone();
        let fs = FileSystem::new(fs_config, tracker, content, locator, writing, invalidations, tasks.clone());
        let fs = Arc::new(fs);
        fs.announce_open_files(peer.open_files().clone());
        if let Err(error) = fs.counters().register(&registry) {
            tracing::error!(%error, "register the counters of the mount");
        }
        let (following, stopped) = (fs.clone(), stop.clone());
        // Not on the thread of names: what is new may have to be told to the kernel, which may wait for an answer of that thread.
        tasks.spawn(async move { following.follow_changes(stopped).await });
        tasks.spawn(fs.clone().resume_saves(stop.clone()));
        tasks.spawn(fs.clone().pay_debts(stop.clone()));
        if passes_writes {
            tasks.spawn(fs.clone().send_passed(stop.clone()));
        }
        let began = Instant::now();
        while !fs.is_live() && began.elapsed() < LIVE_PATIENCE {
            tokio::time::sleep(LIVE_POLL).await;
        }

        let ready = Readiness::default();
        let admin = match config.admin_listen {
            None => None,
            Some(address) => {
                let serving = admin::serve(address, registry, ready.clone(), &tasks, stop.clone());
                Some(serving.await.map_err(|source| MountError::Admin { address, source })?)
            }
        };
        let source = address.to_string();
        fs.on_status(status(&fs, &peer, &cache, &cache_dir, &source, &prepared.path, admin, ends_with_mount));

        let session_config = SessionConfig {
            mountpoint: prepared.path.clone(),
            source: source.clone(),
            allow_other: config.allow_other,
            xattr: config.xattr,
        };
        let (mounted, session_tasks) = (fs.clone(), tasks.clone());
        let runtimes = Runtimes { reading: Handle::current(), names };
        let path = prepared.path.clone();
        let session = blocking(move || {
            Session::mount(mounted, &session_config, forget, runtimes, session_tasks)
                .map_err(|source| MountError::Kernel { folder: path, source })
        })
        .await?;
        let path = prepared.path.clone();
        let device = blocking(move || {
            let device = table::at(&path).ok().flatten().map(|entry| entry.device).unwrap_or_default();
            folder::raise_readahead(&device);
            device
        })
        .await;
        ready.set(true);
        // From here on it is for `unmount` to end what runs.
        undo.finished = true;
        let mountpoint = prepared.path;
        Ok(Self {
            fs,
            peer,
            session,
            mountpoint,
            device,
            source,
            notes,
            admin,
            ready,
            tasks,
            stop,
            _names: names_runtime,
        })
    }

    /// The folder; absolute.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// The tracker and the folder of the swarm that is shown.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What a person should know of the start: a folder was made, a dead mount cleared.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Where metrics are shown.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// This mount as a peer.
    pub fn peer(&self) -> &Peer<CacheStore> {
        &self.peer
    }

    /// The file system.
    pub fn file_system(&self) -> &Arc<FileSystem> {
        &self.fs
    }

    /// Returns when somebody else has unmounted it.
    pub async fn ended(&self) {
        self.session.ended().cancelled().await;
    }

    /// Unmount, end what is being saved, tell the trackers, let peers finish, make the cache durable. Ends within about 20
    /// seconds after the last save, each of which fails after `write_timeout` without progress.
    ///
    /// Errors: the folder is still mounted; all else is stopped.
    pub async fn unmount(self) -> Result<Stopped, UnmountError> {
        self.ready.set(false);
        let (path, device) = (self.mountpoint.clone(), self.device.clone());
        let unmounted = blocking(move || unmount::unmount_own(&path, &device)).await;
        let ended = tokio::time::timeout(SESSION_PATIENCE, self.session.ended().cancelled()).await;
        if ended.is_ok() && unmounted.is_ok() {
            self.fs.end_saves().await;
        }
        let drained = self.peer.drain(DRAIN_PATIENCE).await;
        self.stop.cancel();
        self.tasks.close();
        let finished = tokio::time::timeout(TASKS_PATIENCE, self.tasks.wait()).await;
        unmounted?;
        self.fs.tell_of_unsaved();
        Ok(match ended.is_ok() && finished.is_ok() {
            true => drained,
            false => Stopped::Forced,
        })
    }
}

/// Do `work`, and have what it begins run there.
fn within<T>(runtime: &Handle, work: impl FnOnce() -> T) -> T {
    let _within = runtime.enter();
    work()
}

/// What writing needs, and who sends for it; what an earlier mount left unsaved is told of.
async fn writing(
    config: &MountConfig,
    cache_dir: &Path,
    tracker: &Arc<TrackerClient>,
    ours: SwarmId,
    tasks: &TaskTracker,
    stop: &CancellationToken,
    names: &Handle,
) -> Result<(Writing, Uploader), MountError> {
    let status = tracker.status(0).await?;
    let replicas = status.replicas.max(1);
    let upload = UploadConfig {
        segment_bytes: u32::try_from(config.segment_size.0).unwrap_or(MAX_SEGMENT_BYTES),
        replicas,
        min_replicas: status.min_replicas.clamp(1, replicas),
        patience: config.write_timeout.0,
        unasked_bytes: UNASKED_BYTES,
        recent_bytes: RECENT_BYTES,
        ..UploadConfig::default()
    };
    let uploader = within(names, || Uploader::new(tracker.clone(), upload, tasks, stop.clone()));
    let folder = config.spool_dir.clone().unwrap_or_else(|| cache_dir.join(SPOOL));
    let opened = {
        let folder = folder.clone();
        let free_share = config.free_space_ratio;
        let open = move || {
            let opened = Spool::open(&folder, SPOOL_FLOOR_BYTES)?;
            Ok((opened, Debts::open(&folder.join(OWED), free_share)?))
        };
        blocking(open).await
    };
    let ((spool, left), debts) = opened.map_err(|source| MountError::Spool { folder, source })?;
    if !left.is_empty() {
        tracing::warn!(files = left.len(), "an earlier mount left files unsaved: `swarmfs spool list` shows them");
    }
    let ours = ours.to_string();
    let owed = debts.sum(&ours);
    if owed.files > 0 {
        tracing::info!(
            files = owed.files,
            bytes = owed.bytes,
            "seeders lack some of what an earlier mount saved: it is sent to them"
        );
    }
    let writing = Writing::new(Arc::new(uploader.clone()), spool, ours, config.write_timeout.0).with_debts(debts);
    let writing = writing.with_host(&config.host);
    Ok((writing.with_writeback(config.writeback), uploader))
}

#[expect(clippy::too_many_arguments, reason = "all that there is to say of a mount, gathered once")]
fn status(
    fs: &Arc<FileSystem>,
    peer: &Peer<CacheStore>,
    cache: &Arc<CacheStore>,
    cache_dir: &Path,
    source: &str,
    mountpoint: &Path,
    admin: Option<SocketAddr>,
    ends_with_mount: bool,
) -> impl Fn() -> String + Send + Sync + 'static {
    // The file system keeps this closure: it must not keep the file system.
    let (fs, cache) = (Arc::downgrade(fs), cache.clone());
    let announced = peer.announced();
    let (peer_id, listening) = (peer.id().to_string(), peer.address());
    let (source, mountpoint) = (source.to_owned(), mountpoint.display().to_string());
    let cache_dir = cache_dir.display().to_string();
    move || {
        let Some(fs) = fs.upgrade() else { return String::new() };
        let (usage, owed) = (cache.usage(), fs.owed());
        let (no_passthrough, no_passed_writes) = (fs.no_passthrough(), fs.no_passed_writes());
        let told = announced.borrow().address.clone().filter(|address| !address.is_empty());
        let status = MountStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            ends_with_mount,
            source: source.clone(),
            mountpoint: mountpoint.clone(),
            live: fs.is_live(),
            passthrough: no_passthrough.is_none(),
            no_passthrough_because: no_passthrough,
            passthrough_writes: no_passed_writes.is_none(),
            no_passthrough_writes_because: no_passed_writes,
            open_files: fs.open_handles() as u64,
            reads_total: fs.counters().reads.get(),
            read_bytes_total: fs.counters().read_bytes.get(),
            cache_dir: cache_dir.clone(),
            cache_used_bytes: usage.used_bytes,
            cache_size_bytes: usage.capacity_bytes,
            spool_dir: fs.spool_folder().map(|folder| folder.display().to_string()),
            unsaved_files: fs.unsaved_files() as u64,
            owed_files: owed.files,
            owed_bytes: owed.bytes,
            peer_id: peer_id.clone(),
            peer_address: listening.map(|listening| told.unwrap_or_else(|| listening.to_string())),
            admin_address: admin.map(|admin| admin.to_string()),
        };
        serde_json::to_string(&status).unwrap_or_default()
    }
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The mount shows one swarm, whatever its tracker comes to serve: inode numbers of another would name other files.
fn only(ours: SwarmId, tracker: TrackerAddress) -> Binding {
    Arc::new(move |swarm| {
        let other = (swarm != ours).then(|| {
            format!(
                "{tracker} serves swarm {swarm} there, this mount shows {ours}: bring its catalog back (`swarmfs catalog import`), \
                 or unmount and mount again"
            )
        });
        Box::pin(std::future::ready(other.map_or(Ok(()), Err)))
    })
}
