//! A whole swarm in one process: tracker, seeders and mount, whose state survives it.
//!
//! Not a demo: stopped and started again it is the same swarm, at the same addresses. Invariant: a start
//! that fails leaves nothing running and nothing mounted.

mod addresses;
mod room;
pub mod state;
mod welcome;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use futures::future::{join_all, select_all};
use prometheus::Registry;
use swarm_proto::settings::{ByteCount, Span};
use swarm_seeder::peer::Stopped;
use swarm_seeder::service::{Seeder, SeederConfig, SeederError};
use swarm_seeder::tracker_client::{AddressError, TrackerAddress, TrackerClient, TrackerClientConfig, TrackerError};
use swarm_tracker::config::AdminListen;
use swarm_tracker::{StartError, Tracker, TrackerConfig};

use self::addresses::Addresses;
use self::state::{Memory, StateFolder, StateLock, free_port};
use crate::mount::{Mount, MountConfig, MountError};

/// First port that a seeder is given.
const FIRST_SEEDER_PORT: u16 = 7080;
/// How long the seeders may take until the tracker knows all that they hold.
const ANNOUNCED: Duration = Duration::from_secs(20);
/// How long a question to the own tracker is tried.
const PATIENCE: Duration = Duration::from_secs(10);
/// A broken stream within one process is an end, not a hiccup.
const GRACE: Span = Span(Duration::from_secs(2));

/// What to bring up.
#[derive(Debug, Clone)]
pub struct UpConfig {
    /// Where to mount it; none: nowhere.
    pub mount_at: Option<PathBuf>,
    /// Where it lives.
    pub state: StateFolder,
    /// Address of this machine that it listens on; unspecified: all of them.
    pub listen: IpAddr,
    /// Name or address at which other machines reach this one; none: found out.
    pub advertise: Option<String>,
    /// Seeders, at least 1; never fewer than last time.
    pub seeders: usize,
    /// Replicas of each segment; fewer where there are fewer seeders.
    pub replicas: u32,
    /// Bytes that all seeders may keep together; 0: nine tenths of what is free.
    pub capacity: ByteCount,
    /// Other users may use the mount.
    pub allow_other: bool,
}

/// Why it did not come up.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The state folder cannot be used.
    #[error("state folder {}: {source}", path.display())]
    State {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process runs this swarm.
    #[error("the swarm in {} is up already{}", path.display(), at.as_ref().map(|at| format!(", mounted at {}", at.display())).unwrap_or_default())]
    Running {
        /// The state folder.
        path: PathBuf,
        /// Where it was mounted last.
        at: Option<PathBuf>,
    },
    /// No port can be had.
    #[error("listen on {ip}: {source}")]
    Listen {
        /// The address.
        ip: IpAddr,
        /// Why.
        source: io::Error,
    },
    /// The name to advertise makes no address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The tracker did not start.
    #[error("start the tracker: {0}")]
    Tracker(#[from] StartError),
    /// A seeder did not start, or cannot go on.
    #[error("seeder {number}: {source}")]
    Seeder {
        /// Which, from 1.
        number: usize,
        /// Why.
        source: SeederError,
    },
    /// The own tracker did not answer, or refused.
    #[error(transparent)]
    Ask(#[from] TrackerError),
    /// The mount did not start.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// A swarm that is up. Call [`Self::stop`]: dropping it does not unmount.
pub struct Up {
    mount: Option<Mount>,
    seeders: Vec<Seeder>,
    tracker: Tracker,
    addresses: Addresses,
    notes: Vec<String>,
    _lock: StateLock,
}

impl Up {
    /// Bring it up; the folder can be used when this returns.
    pub async fn start(config: UpConfig) -> Result<Self, UpError> {
        let state = |source| UpError::State { path: config.state.path.clone(), source };
        let Some(lock) = config.state.lock().map_err(state)? else {
            let at = config.state.remembered().and_then(|memory| memory.mounted_at);
            return Err(UpError::Running { path: config.state.path.clone(), at });
        };
        let remembered = config.state.remembered();
        let mut notes = Vec::new();
        let mut memory = remembered.clone().unwrap_or_default();
        let addresses = Addresses::choose(&config, &mut memory, &mut notes)?;
        if addresses.seeders.len() > config.seeders {
            let (all, wanted) = (addresses.seeders.len(), config.seeders);
            notes.push(format!("all {all} seeders of this swarm run, not only {wanted}: any may hold the only copy"));
        }
        let replicas = config.replicas.clamp(1, u32::try_from(addresses.seeders.len()).unwrap_or(u32::MAX));
        if replicas < config.replicas {
            notes.push(format!("{0} replicas need {0} seeders: {replicas} of each segment is kept", config.replicas));
        }
        let tracker = Tracker::start(TrackerConfig {
            listen: addresses.tracker,
            data: Some(config.state.tracker()),
            admin_listen: AdminListen::Off,
            replicas,
            min_replicas: replicas.min(2),
            stale_grace: GRACE,
            ..TrackerConfig::default()
        })
        .await?;
        let mut up = Self { mount: None, seeders: Vec::new(), tracker, addresses, notes, _lock: lock };
        match up.complete(&config, memory, remembered.is_none()).await {
            Ok(()) => Ok(up),
            Err(error) => {
                up.stop().await;
                Err(error)
            }
        }
    }

    /// Everything after the tracker, so that a failure can stop what has been started.
    async fn complete(&mut self, config: &UpConfig, mut memory: Memory, first_start: bool) -> Result<(), UpError> {
        let local = format!("swarm://{}", self.addresses.local(self.tracker.address()));
        self.start_seeders(config, &local).await?;
        let client = TrackerClient::new(TrackerClientConfig {
            address: local.parse::<TrackerAddress>()?,
            me: None,
            zone: String::new(),
            patience: PATIENCE,
        })?;
        let known = join_all(self.seeders.iter().map(|seeder| seeder.announced(ANNOUNCED))).await;
        if known.contains(&false) {
            self.notes.push("the tracker does not know all that the seeders hold yet".to_owned());
        }
        if first_start {
            // The swarm works without it: a disk that is nearly full must not keep it down.
            if let Err(reason) = welcome::publish(&client, self.seeders.len()).await {
                self.notes.push(format!("the folder welcome could not be put: {reason}"));
            }
        }
        if let Some(folder) = &config.mount_at {
            let mount = Mount::start(
                MountConfig {
                    tracker: local,
                    cache_dir: Some(config.state.cache()),
                    listen: SocketAddr::new(config.listen, 0),
                    advertise: None,
                    host: hostname(),
                    allow_other: config.allow_other,
                    ..MountConfig::default()
                },
                folder,
                true,
            )
            .await?;
            self.notes.extend(mount.notes().iter().cloned());
            memory.mounted_at = Some(mount.mountpoint().to_owned());
            self.mount = Some(mount);
        }
        memory.tracker = self.addresses.local(self.tracker.address()).to_string();
        let state = |source| UpError::State { path: config.state.path.clone(), source };
        config.state.remember(&memory).map_err(state)
    }

    async fn start_seeders(&mut self, config: &UpConfig, tracker: &str) -> Result<(), UpError> {
        let listen: Vec<SocketAddr> = self.addresses.seeders.clone();
        let folders: Vec<PathBuf> = (0..listen.len()).map(|index| config.state.seeder(index)).collect();
        let rooms = room::shares(config.capacity, &config.state.path, &folders).await;
        for (index, (listen, (data, capacity))) in listen.into_iter().zip(folders.into_iter().zip(rooms)).enumerate() {
            let seeder = SeederConfig {
                tracker: tracker.to_owned(),
                listen,
                advertise: Some(self.addresses.outside(listen.port())),
                data,
                capacity,
                host: hostname(),
                admin_listen: "off".to_owned(),
                ..SeederConfig::default()
            };
            let started = Seeder::start(seeder, &Registry::new()).await;
            self.seeders.push(started.map_err(|source| UpError::Seeder { number: index + 1, source })?);
        }
        Ok(())
    }

    /// The folder, if it is mounted.
    pub fn mountpoint(&self) -> Option<&std::path::Path> {
        self.mount.as_ref().map(Mount::mountpoint)
    }

    /// The tracker's address, as other machines reach it if they do.
    pub fn tracker_url(&self) -> String {
        format!("swarm://{}", self.addresses.outside(self.tracker.address().port()))
    }

    /// The same, as it would be if this machine listened on all its addresses.
    pub fn lan_tracker_url(&self) -> Option<String> {
        let ip = self.addresses.lan?;
        Some(format!("swarm://{}", SocketAddr::new(ip, self.tracker.address().port())))
    }

    /// Whether only this machine reaches it.
    pub fn is_local(&self) -> bool {
        self.addresses.tracker.ip().is_loopback()
    }

    /// Seeders that run.
    pub fn seeders(&self) -> usize {
        self.seeders.len()
    }

    /// What a person should know of the start.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns when a part cannot go on.
    pub async fn failed(&self) -> UpError {
        let failures = self.seeders.iter().enumerate().map(|(index, seeder)| {
            Box::pin(async move { UpError::Seeder { number: index + 1, source: seeder.failed().await } })
        });
        match self.seeders.is_empty() {
            true => futures::future::pending().await,
            false => select_all(failures).await.0,
        }
    }

    /// Returns when somebody else has unmounted the folder.
    pub async fn unmounted(&self) {
        match &self.mount {
            Some(mount) => mount.ended().await,
            None => futures::future::pending().await,
        }
    }

    /// Unmount and stop all of it, the tracker last. Ends within about half a minute.
    pub async fn stop(self) -> Ended {
        let mut ended = Ended { clean: true, still_mounted: None };
        if let Some(mount) = self.mount {
            match mount.unmount().await {
                Ok(stopped) => ended.clean &= stopped == Stopped::Clean,
                Err(error) => ended.still_mounted = Some(error.to_string()),
            }
        }
        let stopped = join_all(self.seeders.into_iter().map(Seeder::stop)).await;
        ended.clean &= stopped.iter().all(|stopped| *stopped == Stopped::Clean);
        ended.clean &= self.tracker.stop().await == swarm_tracker::server::Stopped::Clean;
        ended
    }
}

/// How a swarm ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Nothing was cut off.
    pub clean: bool,
    /// Why the folder is mounted still, if it is.
    pub still_mounted: Option<String>,
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
