//! The folder that a new swarm begins with: real files, so that there is something to see and to copy.

use std::io::Cursor;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use swarm_proto::v1::operation::Operation;
use swarm_proto::v1::{IfExists, MakeDirectory, Ownership, PublishFile};
use swarm_proto::{Fault, InodeNumber};
use swarm_seeder::swarm::upload::{LONGEST_SYNC, UploadConfig, Uploader, upload_stream};
use swarm_seeder::tracker_client::{TrackerClient, TrackerError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Most acknowledgements of one file; these have one segment each.
const ACKNOWLEDGED: usize = 16;

const FIRST: &str = "\
Welcome. This folder is a swarm: its files are cut into segments, and each segment lies with several
seeders. What you read is fetched from all of them at once, and every byte is verified on its way.

Try, in another terminal:

  cp -r welcome ~                     it is an ordinary folder
  swarmfs put ~/Pictures /            copy something in; only what the swarm lacks is sent
  swarmfs ls -l /                     what is there
  swarmfs stat /welcome/README.md     its hash, its segments, and who holds them
  swarmfs status                      health at a glance
  swarmfs peers                       who takes part

`swarmfs up` printed the commands that add a seeder and a mount on another machine. It keeps all it has
when it ends: started again, it shows the same files.
";

/// Name and text of each file.
const FILES: [(&str, &str); 4] = [
    ("FIRST-STEPS.txt", FIRST),
    ("README.md", include_str!("../../../README.md")),
    ("COMMANDS.md", include_str!("../../../docs/CLI.md")),
    ("SEMANTICS.md", include_str!("../../../docs/SEMANTICS.md")),
];

/// Put the folder, if the swarm has nothing at all.
///
/// Errors: in words.
pub(super) async fn publish(tracker: &TrackerClient, seeders: usize) -> Result<(), String> {
    let words = |error: TrackerError| error.to_string();
    if !tracker.read_dir(InodeNumber::ROOT).await.map_err(words)?.is_empty() {
        return Ok(());
    }
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let _stop = stop.clone().drop_guard();
    let replicas = u32::try_from(seeders).unwrap_or(u32::MAX).clamp(1, 2);
    let config = UploadConfig { replicas, min_replicas: replicas, ..UploadConfig::default() };
    let uploader = Uploader::new(Arc::new(tracker.clone()), config, &tasks, stop);
    let make =
        MakeDirectory { parent: InodeNumber::ROOT.0, name: b"welcome"[..].into(), ownership: Some(ownership(0o755)) };
    let folder = match tracker.mutate_one(Operation::MakeDirectory(make)).await {
        Ok(folder) => folder.ok_or("the tracker made no folder")?,
        Err(TrackerError::Refused { fault: Fault::Exists, .. }) => return Ok(()),
        Err(error) => return Err(words(error)),
    };
    let mut operations = Vec::new();
    let mut uploads = Vec::new();
    for (name, text) in FILES {
        let uploaded = upload_stream(&uploader, Cursor::new(text)).await.map_err(|error| error.to_string())?;
        operations.push(Operation::PublishFile(PublishFile {
            parent: folder.inode,
            name: name.as_bytes().into(),
            ownership: Some(ownership(0o644)),
            size: uploaded.manifest.size(),
            if_exists: IfExists::Fail.into(),
            content: Some(tracker.offer_manifest(&uploaded.manifest).await.map_err(words)?),
            acknowledged: uploader.acknowledged(&uploaded.segment_ids(), ACKNOWLEDGED),
            ..PublishFile::default()
        }));
        uploads.push(uploaded);
    }
    let ids: Vec<_> = uploads.iter().flat_map(|uploaded| uploaded.segment_ids()).collect();
    if !uploader.sync(&ids, LONGEST_SYNC).await.is_empty() {
        return Err("the seeders could not write it to their disks".to_owned());
    }
    let outcomes = tracker.mutate(operations).await.map_err(words)?;
    outcomes.into_iter().try_for_each(|outcome| outcome.map(|_| ()).map_err(|refusal| refusal.message))
}

fn ownership(mode: u32) -> Ownership {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ownership {
        mode,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        modified_ns: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        inherit: false,
    }
}
