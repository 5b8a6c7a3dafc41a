//! One group of requests: planned together, committed together, answered together.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use bytes::Bytes;
use swarm_proto::{Fault, InodeNumber, ManifestDigest, Revision};

use super::{Done, Job, Mutated, Others, Parts, Ready};
use crate::catalog::manifests::Origin;
use crate::catalog::requests::{Answers, Known};
use crate::catalog::state::Seen;
use crate::catalog::{now_ns, refusal_of, refuse_unavailable};
use crate::namespace::{Draft, Fresh, Image, NameWrite, Node, Refusal, Relied, plan};
use crate::store::schema::{Key, Record, TreeNumber, answers};
use crate::store::{Commit, Condition, Outcome, StoreError, Write};

/// How often a group is planned again because another replica was faster.
const TRIES: usize = 16;

pub(super) async fn commit(parts: &Parts, group: Vec<Job>) {
    let mut group = answer_known(parts, group).await;
    for _ in 0..TRIES {
        if group.is_empty() {
            return;
        }
        let operations: u64 = group.iter().map(|job| job.operations.len() as u64 * Fresh::A_PLAN).sum();
        let mut fresh = match parts.numbers.take(operations).await {
            Ok(fresh) => fresh,
            Err(error) => return refuse_all(group, &error),
        };
        let at_ns = now_ns();
        let (commit, planned) = plan_group(&parts.state.view(), &group, at_ns, &mut fresh);
        match parts.store.commit(commit).await {
            Ok(Outcome::Committed(revision)) => {
                parts.numbers.give_back(fresh).await;
                parts.state.absorb_waiting(&parts.manifests);
                parts.state.reached(revision).await;
                return answer_all(parts, group, planned, at_ns, revision);
            }
            Ok(Outcome::Conflict) => {}
            Err(error) => return refuse_all(group, &error),
        }
        // Somebody else changed what the plans rely on: see that first, then plan again.
        match parts.store.revision().await {
            Ok(newest) => parts.state.reached(newest).await,
            Err(error) => return refuse_all(group, &error),
        }
        if let Err(error) = look_again(parts, &mut group).await {
            return refuse_all(group, &error);
        }
        group = answer_known(parts, group).await;
    }
    for job in group {
        drop(job.reply.send(Err(refuse_unavailable("others change the same names all the time: try again"))));
    }
}

/// Answer those that were answered before; the rest are to be done.
async fn answer_known(parts: &Parts, group: Vec<Job>) -> Vec<Job> {
    let mut rest = Vec::with_capacity(group.len());
    let mut ids = HashSet::new();
    for job in group {
        let answer = match parts.answers.find(job.id, &job.fingerprint).await {
            Ok(Known::New) if ids.insert(job.id) => {
                rest.push(job);
                continue;
            }
            // The same id twice in one group: whoever sent it gets the answer by asking again.
            Ok(Known::New) => Err(refuse_unavailable("this request is being done: send it again for its answer")),
            Ok(Known::Answered(revision, answer)) => answers::decode(&answer)
                .map(|results| Mutated { revision, results, others: Vec::new() })
                .map_err(|error| Refusal::new(Fault::Corrupt, error.to_string())),
            Err(refusal) => Err(refusal),
        };
        // What it changed is not known any more.
        let leased = parts.leases.end_of_all(Instant::now());
        answer_after(parts, leased, job, answer);
    }
    rest
}

/// What a job comes to once the group is committed.
struct Planned {
    results: Vec<Done>,
    /// What else each operation changed, if that was asked for.
    others: Vec<Vec<(InodeNumber, Node)>>,
    /// Files that it removes or gives another content.
    changed: Vec<InodeNumber>,
    /// All inodes that it writes.
    written: Vec<InodeNumber>,
}

impl Planned {
    /// Answers carry the revision of the group: inodes are shown as they are then, also where a later request of the
    /// group changed them. One that such a request removed has no links.
    fn show_as_committed(&mut self, draft: &Draft<'_>) {
        let results = self.results.iter_mut().flatten().flatten();
        for (inode, node) in results.chain(self.others.iter_mut().flatten()) {
            match draft.node(*inode) {
                Some(committed) => *node = committed.clone(),
                None => node.links = 0,
            }
        }
    }
}

fn plan_group(seen: &Seen, group: &[Job], at_ns: i64, fresh: &mut Fresh) -> (Commit, Vec<Planned>) {
    let mut draft = Draft::new(&seen.image);
    let mut manifests = HashMap::new();
    let mut writes = Vec::new();
    let mut conditions = Vec::new();
    let mut jobs = Vec::with_capacity(group.len());
    for job in group {
        let (mut others, mut changed, mut written) = (Vec::new(), Vec::new(), Vec::new());
        let results: Vec<Done> = job
            .operations
            .iter()
            .map(|operation| {
                if job.others == Others::Tell {
                    others.push(Vec::new());
                }
                let Ready { operation, manifest } = operation.as_ref().map_err(Clone::clone)?;
                let planned = plan::plan(&draft, operation, at_ns, fresh)?;
                draft.absorb(&planned);
                for write in &planned.writes {
                    let NameWrite::Node(inode, node) = write else { continue };
                    written.push(*inode);
                    if changes_content(&seen.image, *inode, node.as_ref()) {
                        changed.push(*inode);
                    }
                    let is_result = planned.node.as_ref().is_some_and(|(result, _)| result == inode);
                    if let (Some(others), Some(node), false) = (others.last_mut(), node, is_result) {
                        others.push((*inode, node.clone()));
                    }
                }
                if let Some(manifest) = manifest {
                    manifests.entry(manifest.digest).or_insert_with(|| manifest.clone());
                }
                Ok(planned.node)
            })
            .collect();
        conditions.push(Condition::Absent(Key::Request(job.id).encode()));
        jobs.push(Planned { results, others, changed, written });
    }
    for (job, planned) in group.iter().zip(&mut jobs) {
        planned.show_as_committed(&draft);
        writes.extend(Answers::records(job.id, job.fingerprint, at_ns, answers::encode(&planned.results)));
    }
    for (digest, manifest) in manifests {
        let key = Key::Manifest(digest).encode();
        let live = seen.image.is_live(&digest);
        conditions.push(match (live, manifest.origin) {
            (false, Origin::Brought) => Condition::Absent(key),
            _ => Condition::Present(key),
        });
        // The head of a stored one is written again, so that a sweep that has just read it lets it be.
        if !live {
            writes.extend(manifest.writes.iter().cloned());
        }
    }
    let drafted = draft.finish();
    let tree = seen.swarm.tree;
    conditions.extend(drafted.relied.into_iter().map(|relied| condition_of(tree, relied, seen.revision)));
    // The tree is the live one: no import came between.
    conditions.push(Condition::UnchangedSince(Key::Swarm.encode(), seen.revision));
    writes.extend(drafted.writes.into_iter().map(|write| record_of(tree, write)));
    (Commit { conditions, writes }, jobs)
}

/// Whether a file loses its last name, is gone or gets another content: in each case it is not to be opened as it was.
fn changes_content(image: &Image, inode: InodeNumber, new: Option<&Node>) -> bool {
    let Some(old) = image.node(inode) else { return false };
    let is_orphaned = new.is_some_and(Node::is_orphan) && !old.is_orphan();
    old.content().is_some() && (is_orphaned || new.and_then(Node::content) != old.content())
}

pub(in crate::catalog) fn condition_of(tree: TreeNumber, relied: Relied, since: Revision) -> Condition {
    let entry = |directory, name: &crate::namespace::Name| {
        Key::Entry(tree, directory, Bytes::copy_from_slice(name.as_bytes())).encode()
    };
    match relied {
        Relied::Node(inode) => Condition::UnchangedSince(Key::Node(tree, inode).encode(), since),
        Relied::Entry(directory, name) => Condition::UnchangedSince(entry(directory, &name), since),
        Relied::NoEntry(directory, name) => Condition::Absent(entry(directory, &name)),
    }
}

pub(crate) fn record_of(tree: TreeNumber, write: NameWrite) -> Write {
    match write {
        NameWrite::Node(inode, node) => {
            Write { key: Key::Node(tree, inode).encode(), value: node.map(|node| Record::Node(node).encode()) }
        }
        NameWrite::Entry(directory, name, inode) => {
            let key = Key::Entry(tree, directory, Bytes::copy_from_slice(name.as_bytes()));
            Write { key: key.encode(), value: inode.map(|inode| Record::Entry(inode).encode()) }
        }
    }
}

/// After a conflict: which of the manifests are there now.
async fn look_again(parts: &Parts, group: &mut [Job]) -> Result<(), StoreError> {
    let mut seen: HashMap<ManifestDigest, _> = HashMap::new();
    for operation in group.iter_mut().flat_map(|job| job.operations.iter_mut()) {
        let Ok(Ready { manifest: Some(manifest), .. }) = operation else { continue };
        let digest = manifest.digest;
        let stored = match seen.get(&digest) {
            Some(stored) => Option::clone(stored),
            None => {
                let stored = parts.manifests.stored(digest).await?.map(std::sync::Arc::new);
                seen.insert(digest, stored.clone());
                stored
            }
        };
        match (stored, manifest.origin) {
            (Some(stored), _) => *manifest = stored,
            (None, Origin::Brought) => {}
            (None, Origin::Stored) => {
                let message = format!("manifest {digest} is unknown: put it first");
                *operation = Err(Refusal::new(Fault::NotFound, message));
            }
        }
    }
    Ok(())
}

fn answer_all(parts: &Parts, group: Vec<Job>, planned: Vec<Planned>, at_ns: i64, revision: Revision) {
    for (job, Planned { results, others, changed, written }) in group.into_iter().zip(planned) {
        parts.answers.kept(job.id, at_ns);
        let leased = parts.leases.hold(&changed, &written, Instant::now());
        answer_after(parts, leased, job, Ok(Mutated { revision, results, others }));
    }
}

/// Answer once no lease is left on what was changed; the writer does not wait for that.
fn answer_after(parts: &Parts, leased: Option<Instant>, job: Job, answer: Result<Mutated, Refusal>) {
    match leased.filter(|_| answer.is_ok()) {
        None => drop(job.reply.send(answer)),
        Some(end) => drop(parts.tasks.spawn(async move {
            tokio::time::sleep_until(end.into()).await;
            drop(job.reply.send(answer));
        })),
    }
}

fn refuse_all(group: Vec<Job>, error: &StoreError) {
    tracing::error!(%error, requests = group.len(), "commit changes of the catalog");
    for job in group {
        drop(job.reply.send(Err(refusal_of(error))));
    }
}
