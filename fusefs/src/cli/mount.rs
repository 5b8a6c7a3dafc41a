//! `swarmfs mount`: shows a swarm as a folder, in the background or the foreground.
//!
//! In the background a child does the work: it gets its whole configuration on standard input and says on
//! standard output, once, how its start went; so what goes wrong at the start ends this command with the
//! right exit code, and nothing of the command line is read twice.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use swarm_proto::admin;
use swarm_proto::settings;
use swarm_seeder::peer::Stopped;
use swarm_seeder::tracker_client::TrackerAddress;

use super::connect::{Tool, ToolFlags, tracker_failure};
use super::exit::{Exit, Failure, Outcome, of_io};
use super::show;
use crate::mount::{Mount, MountConfig, MountError};

/// A log of the background grows up to this; then the next start puts it aside.
const LOG_BYTES_MOST: u64 = 8 << 20;
/// Lines of the log that are shown when a child died without a word.
const LOG_LINES_SHOWN: usize = 12;

/// Show a swarm as a folder
#[derive(Debug, Args)]
#[command(override_usage = "swarmfs mount [OPTIONS] [swarm://HOST:PORT[/FOLDER]] DIR")]
#[command(after_long_help = "\
Examples:
  swarmfs mount swarm://host:7070 ~/swarm          the whole swarm
  swarmfs mount swarm://host:7070/models ~/models  one folder of it
  swarmfs umount ~/swarm                           end it

It is an ordinary folder, unless --read-only. Settings may also stand in SWARM_… variables and in a
file (--config); --print-config shows those in force. What a mount says of itself:
  cat ~/swarm/.swarmfs-status")]
pub struct MountCommand {
    /// The swarm, or a folder of it, and where to show it; without a swarm: --tracker, SWARM_TRACKER, or what
    /// `swarmfs up` runs here. DIR is made if it is absent
    #[arg(value_name = "DIR", num_args = 1..=2, required_unless_present = "print_config")]
    words: Vec<OsString>,
    /// What may be set.
    #[command(flatten)]
    flags: MountFlags,
    /// Stay in the foreground; Ctrl-C or SIGTERM unmounts
    #[arg(short, long, conflicts_with = "daemon")]
    foreground: bool,
    /// Go to the background once the folder is usable (the default)
    #[arg(long)]
    daemon: bool,
}

/// Flags of a mount; those that are absent come from the environment, the file or the defaults.
#[derive(Debug, Default, Args, Serialize)]
pub(crate) struct MountFlags {
    /// Where fetched bytes are kept [default: a folder of its own below ~/.cache/swarmfs]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Most bytes kept there; 0: none [default: 10GiB]
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<String>,
    /// Share of the cache's disk that stays free, 128 MiB at least if written files lie there too [default: 0.05]
    #[arg(long, value_name = "0-1")]
    free_space_ratio: Option<f64>,
    /// Most bytes fetched ahead of one reader [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    max_readahead: Option<String>,
    /// Most bytes in memory for all readers [default: 256MiB, or a quarter of what may be used]
    #[arg(long, value_name = "SIZE", hide_short_help = true)]
    memory: Option<String>,
    /// Longest that a read may take before it fails [default: 30s]
    #[arg(long, value_name = "TIME")]
    read_timeout: Option<String>,
    /// Longest that saving a file may go without progress before it fails [default: 60s]
    #[arg(long, value_name = "TIME")]
    write_timeout: Option<String>,
    /// A close returns at once, and the file is saved meanwhile: until then others do not see it, and it is lost if
    /// this machine is. fsync waits as ever
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip_serializing_if = "is_false")]
    writeback: bool,
    /// Have the kernel write files that are made or emptied into the spool by itself (FUSE passthrough), where it can:
    /// at the speed of that disk; a close then reads the whole file
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip_serializing_if = "is_false")]
    passthrough_writes: bool,
    /// Where what is written lies until the seeders have it [default: a folder of the cache's]
    #[arg(long, value_name = "DIR")]
    spool_dir: Option<PathBuf>,
    /// Length at which files are cut [default: 4MiB]
    #[arg(long, value_name = "SIZE")]
    segment_size: Option<String>,
    /// Longest that a question to the tracker may take before it fails [default: 10s]
    #[arg(long, value_name = "TIME", hide_short_help = true)]
    metadata_timeout: Option<String>,
    /// How long the kernel may keep names and attributes while changes are pushed [default: 1h]
    #[arg(long, value_name = "TIME")]
    metadata_ttl: Option<String>,
    /// Let other users use it
    #[arg(long, num_args = 0, default_missing_value = "true")]
    #[serde(skip_serializing_if = "is_false")]
    allow_other: bool,
    /// Have extended attributes, and say in some what the swarm knows of a file; `ls -l` is slower then
    #[arg(long)]
    #[serde(skip_serializing_if = "is_false")]
    xattr: bool,
    /// Refuse every change
    #[arg(long)]
    #[serde(skip_serializing_if = "is_false")]
    read_only: bool,
    /// Mount over a folder that has something in it
    #[arg(long)]
    #[serde(skip_serializing_if = "is_false")]
    nonempty: bool,
    /// Do not serve what is cached to other peers
    #[arg(long = "no-share")]
    #[serde(rename = "share", serialize_with = "not", skip_serializing_if = "is_false")]
    no_share: bool,
    /// Most bytes a second given to others [default: no limit]
    #[arg(long, value_name = "SIZE")]
    upload_limit: Option<String>,
    /// Most bytes a second fetched from others [default: no limit]
    #[arg(long, value_name = "SIZE")]
    download_limit: Option<String>,
    /// Fetch over the network also from seeders on this machine, and do not read their files
    #[arg(long = "no-local-reads", hide_short_help = true)]
    #[serde(rename = "local_reads", serialize_with = "not", skip_serializing_if = "is_false")]
    no_local_reads: bool,
    /// Where other peers reach this mount [default: 0.0.0.0:0]
    #[arg(long, value_name = "ADDR:PORT", hide_short_help = true)]
    listen: Option<SocketAddr>,
    /// host:port at which others reach it, if not there
    #[arg(long, value_name = "HOST:PORT", hide_short_help = true)]
    advertise: Option<String>,
    /// Name of this machine; peers of one machine count as one failure, and conflict copies are named after it
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    host: Option<String>,
    /// With the tracker away, answer names and attributes from what was known last
    #[arg(long)]
    #[serde(skip_serializing_if = "is_false")]
    offline_ok: bool,
    /// Show metrics and readiness here [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT", hide_short_help = true)]
    admin_listen: Option<SocketAddr>,
    /// How log lines look: text or json [default: text]
    #[arg(long, value_name = "FORMAT", hide_short_help = true)]
    log_format: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn not<S: serde::Serializer>(flag: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bool(!*flag)
}

/// The flags that all commands share, as far as a mount has them.
#[derive(Serialize)]
struct Layers<'a> {
    tracker: Option<&'a str>,
    zone: Option<&'a str>,
    log: Option<&'a str>,
    #[serde(flatten)]
    flags: &'a MountFlags,
}

/// What a child in the background is told.
#[derive(Serialize, Deserialize)]
struct Orders {
    config: MountConfig,
    mountpoint: PathBuf,
}

/// What it answers, in one line.
#[derive(Serialize, Deserialize)]
enum Report {
    Mounted { at: PathBuf, source: String, notes: Vec<String> },
    Failed { exit: u8, message: String, hint: Option<String> },
}

impl MountCommand {
    /// Run it to its end; in the background that is when the folder is usable.
    pub fn run(self, shared: &ToolFlags) -> Outcome {
        let (source, mountpoint) = match <[OsString; 2]>::try_from(self.words) {
            Ok([source, mountpoint]) => (Some(source), PathBuf::from(mountpoint)),
            Err(words) => (None, words.into_iter().next().map(PathBuf::from).unwrap_or_default()),
        };
        let config = configure(source, &self.flags, shared)?;
        if shared.print_config {
            return show::say(settings::to_toml(&config).trim_end());
        }
        config.check().map_err(|error| Failure::new(Exit::Config, error))?;
        match self.foreground {
            true => foreground(&config, &mountpoint),
            false => background(config, &mountpoint),
        }
    }
}

/// Flags over environment over file over defaults.
fn configure(source: Option<OsString>, flags: &MountFlags, shared: &ToolFlags) -> Outcome<MountConfig> {
    let source = source
        .map(|source| source.into_string().map_err(|_| Failure::usage("the address of a swarm is plain text")))
        .transpose()?;
    let log = shared.log.as_deref().or(shared.verbose.then_some("debug"));
    let layers =
        Layers { tracker: source.as_deref().or(shared.tracker.as_deref()), zone: shared.zone.as_deref(), log, flags };
    let environment = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let mut config: MountConfig = settings::load(shared.config.as_deref(), environment, &layers)
        .map_err(|error| Failure::new(Exit::Config, error.to_string()))?;
    if config.tracker.is_empty() {
        let shared = ToolFlags { config: None, ..shared.clone() };
        config.tracker = Tool::new(&shared)?.address()?.to_string();
    }
    let parsed: Result<TrackerAddress, _> = config.tracker.parse();
    parsed.map_err(|error| Failure::new(Exit::Config, format!("tracker: {error}")))?;
    Ok(config)
}

fn foreground(config: &MountConfig, mountpoint: &Path) -> Outcome {
    begin_log(config)?;
    serve(config.clone(), mountpoint, |mount| {
        let is = format!("{} is mounted at {}; Ctrl-C unmounts it", mount.source(), mount.mountpoint().display());
        tell(mount.notes(), &is);
    })
}

/// Say that a folder is mounted; it is, whether or not anybody hears it.
fn tell(notes: &[String], is: &str) {
    for note in notes {
        drop(show::say(format!("swarmfs: {note}")));
    }
    drop(show::say(is));
}

fn begin_log(config: &MountConfig) -> Outcome {
    // Unless somebody asks for them: each unmount by somebody else is a warning there.
    let quiet = if config.log.contains("fuser") { "" } else { ",fuser=error" };
    let filter = format!("{}{quiet}", config.log);
    admin::init_log(&filter, config.log_format).map_err(|error| Failure::new(Exit::Config, error))
}

/// Mount, say so, and stay until somebody unmounts or stops it.
fn serve(config: MountConfig, mountpoint: &Path, say: impl FnOnce(&Mount)) -> Outcome {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("start the runtime", &error))?;
    let outcome = runtime.block_on(async {
        let stop = admin::stop_requested();
        tokio::pin!(stop);
        let mount = tokio::select! {
            mount = Mount::start(config, mountpoint, true) => mount.map_err(failure)?,
            _ = &mut stop => return Err(Failure::new(Exit::Interrupted, "stopped before the folder was mounted")),
        };
        say(&mount);
        tokio::select! {
            () = mount.ended() => tracing::info!("unmounted by somebody else"),
            stopped = &mut stop => stopped.map_err(|error| Failure::io("wait for a signal", &error))?,
        }
        let stopped = tokio::select! {
            stopped = mount.unmount() => stopped.map_err(|error| Failure::new(Exit::Failure, error.to_string()))?,
            _ = admin::stop_requested() => Stopped::Forced,
        };
        match stopped {
            Stopped::Clean => tracing::info!("unmounted"),
            Stopped::Forced => tracing::warn!("unmounted; something that was still going on was cut off"),
        }
        Ok(())
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// A cache has many files; the usual 1,024 are few.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::debug!(%error, "raise the limit of open files");
    }
}

fn background(config: MountConfig, mountpoint: &Path) -> Outcome {
    let mountpoint = std::path::absolute(mountpoint).map_err(|error| Failure::io("find the current folder", &error))?;
    // The child has another current folder.
    let config = config.absolute().map_err(|error| Failure::new(Exit::Config, error))?;
    let address: TrackerAddress =
        config.tracker.parse().map_err(|error| Failure::new(Exit::Config, format!("tracker: {error}")))?;
    let cache = config.cache_folder(&address, &mountpoint, |name| std::env::var_os(name).map(PathBuf::from));
    let log_path = cache.with_extension("log");
    let log = open_log(&log_path).map_err(|error| Failure::io(format!("open {}", log_path.display()), &error))?;
    let said_before = log.metadata().map_or(0, |metadata| metadata.len());

    let program = std::env::current_exe().map_err(|error| Failure::io("find this program", &error))?;
    let mut child = Command::new(program)
        .arg("mount-in-background")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|error| Failure::io("start the background process", &error))?;
    let orders = serde_json::to_vec(&Orders { config, mountpoint: mountpoint.clone() })
        .map_err(|error| Failure::new(Exit::Failure, format!("hand over the settings: {error}")))?;
    if let Some(mut input) = child.stdin.take() {
        // A child that is dead already is found out below.
        let _ = input.write_all(&orders);
    }
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        // Ends by itself: every step of a start has a deadline, and a child that dies closes its end.
        let _ = BufReader::new(output).read_line(&mut line);
    }
    match serde_json::from_str(&line) {
        Ok(Report::Mounted { at, source, notes }) => {
            tell(&notes, &format!("{source} is mounted at {0}; `swarmfs umount {0}` ends it", at.display()));
            Ok(())
        }
        Ok(Report::Failed { exit, message, hint }) => {
            let _ = child.wait();
            let exit = Exit::TABLE.iter().map(|(exit, _)| *exit).find(|known| known.code() == exit);
            Err(Failure { exit: exit.unwrap_or(Exit::Failure), message, hint })
        }
        Err(_) => {
            let ended = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
            let said = tail(&log_path, said_before);
            Err(Failure::new(Exit::Failure, format!("the background process ended with {ended}\n{said}")))
        }
    }
}

/// What the child in the background does.
///
/// Shape: [`Orders`] on standard input, one [`Report`] on standard output.
pub(crate) fn in_background() -> Outcome {
    // Out of the terminal's reach: Ctrl-C and the end of the session are not meant for it.
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "begin a session");
    }
    let mut orders = Vec::new();
    std::io::stdin().read_to_end(&mut orders).map_err(|error| Failure::io("read the settings", &error))?;
    let Orders { config, mountpoint } = serde_json::from_slice(&orders)
        .map_err(|error| Failure::usage(format!("this is for swarmfs itself: {error}")))?;
    // Not to keep another folder busy. The settings name absolute paths only.
    std::env::set_current_dir("/").map_err(|error| Failure::io("go to /", &error))?;
    let outcome = begin_log(&config).and_then(|()| {
        serve(config, &mountpoint, |mount| {
            report(&Report::Mounted {
                at: mount.mountpoint().to_owned(),
                source: mount.source().to_owned(),
                notes: mount.notes().to_vec(),
            });
        })
    });
    if let Err(failure) = &outcome {
        // After a good start nobody listens any more, and the log has it.
        report(&Report::Failed {
            exit: failure.exit.code(),
            message: failure.message.clone(),
            hint: failure.hint.clone(),
        });
    }
    outcome
}

fn report(report: &Report) {
    let mut line = serde_json::to_string(report).unwrap_or_default();
    line.push('\n');
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

fn open_log(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MOST) {
        std::fs::rename(path, path.with_extension("log.old"))?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// The last lines that were written after `from`.
fn tail(path: &Path, from: u64) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let _ = file.seek(SeekFrom::Start(from)).and_then(|_| file.read_to_end(&mut text));
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
}

/// What a mount that did not start means to a person.
pub(crate) fn failure(error: MountError) -> Failure {
    let message = error.to_string();
    match &error {
        MountError::Setting(_) => Failure::new(Exit::Config, message),
        MountError::Tracker(error) => tracker_failure("mount", error),
        MountError::NoSuchFolder(_) => {
            Failure::new(Exit::NotFound, message).hint("`swarmfs ls /` lists what there is; `swarmfs put` adds to it")
        }
        MountError::System(_) => Failure::new(Exit::Unreachable, message).hint("`swarmfs doctor` checks everything"),
        MountError::Folder(folder) => folder_failure(folder, message),
        MountError::Cache(_) => Failure::new(Exit::Failure, message).hint("name another with --cache-dir"),
        MountError::Spool { source, .. } => {
            Failure::new(of_io(source.kind()), message).hint("name another with --spool-dir")
        }
        MountError::Peer(_) => Failure::new(Exit::Failure, message).hint("name another with --listen, or --no-share"),
        MountError::Admin { source, .. } => Failure::new(of_io(source.kind()), message),
        MountError::Kernel { source, .. } => {
            let failure = Failure::new(of_io(source.kind()), message);
            failure.hint("`swarmfs doctor` says what the system lacks")
        }
    }
}

fn folder_failure(error: &crate::mount::FolderError, message: String) -> Failure {
    use crate::mount::FolderError;
    match error {
        FolderError::Mounted { folder, .. } => {
            Failure::new(Exit::Failure, message).hint(format!("`swarmfs umount {}` ends it", folder.display()))
        }
        FolderError::NotEmpty(_) => {
            Failure::new(Exit::Failure, message).hint("name an empty folder, or hide it all the same with --nonempty")
        }
        FolderError::NotFolder(_) | FolderError::Dead(_) => Failure::new(Exit::Failure, message),
        FolderError::Io { source, .. } => Failure::new(of_io(source.kind()), message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> ToolFlags {
        ToolFlags { tracker: Some("h:1".to_owned()), ..ToolFlags::default() }
    }

    #[test]
    fn absent_flags_leave_the_defaults_and_given_ones_win() {
        let config = configure(None, &MountFlags::default(), &shared()).unwrap();
        assert_eq!(config, MountConfig { tracker: "h:1".to_owned(), ..MountConfig::default() });
        let flags = MountFlags {
            no_share: true,
            allow_other: true,
            cache_size: Some("1GiB".to_owned()),
            listen: Some("127.0.0.1:5".parse().unwrap()),
            ..MountFlags::default()
        };
        let config = configure(Some("swarm://other:2/a".into()), &flags, &shared()).unwrap();
        assert!(!config.share && config.allow_other);
        assert_eq!((config.tracker.as_str(), config.cache_size.0), ("swarm://other:2/a", 1 << 30));
        assert_eq!(config.listen.port(), 5);
    }

    #[test]
    fn a_wrong_value_names_its_flag() {
        let flags = MountFlags { cache_size: Some("much".to_owned()), ..MountFlags::default() };
        let failure = configure(None, &flags, &shared()).unwrap_err();
        assert!(failure.exit == Exit::Config && failure.message.contains("--cache-size"), "{failure}");
        let failure = configure(Some("a b".into()), &MountFlags::default(), &shared()).unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
    }

    #[test]
    fn orders_and_reports_survive_the_pipe() {
        let orders = Orders { config: MountConfig::default(), mountpoint: "/a\nb".into() };
        let read: Orders = serde_json::from_slice(&serde_json::to_vec(&orders).unwrap()).unwrap();
        assert_eq!((read.config, read.mountpoint), (orders.config, orders.mountpoint));
    }
}
