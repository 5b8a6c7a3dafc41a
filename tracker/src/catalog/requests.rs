//! Answers that are kept, so that a request that is sent again is not done again.
//!
//! An answer is written by the commit that it answers. After ten minutes the answer goes and the id stays
//! for an hour, so that a late retry is told so instead of being done twice.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use swarm_proto::{Fault, RequestId, Revision};

use super::load::corrupt;
use super::{now_ns, put, refusal_of};
use crate::namespace::Refusal;
use crate::store::schema::{Answer, Key, Record, RequestRecord, prefix};
use crate::store::{Commit, MAX_VALUE_BYTES, Store, StoreError, Write, scan_all};

/// Answers up to this stay in their record.
const HERE_BYTES: usize = MAX_VALUE_BYTES - 64;
/// How long an id is remembered, in multiples of how long its answer is.
const REMEMBERED: i64 = 7;
/// Records changed by one commit.
const AT_ONCE: usize = 1024;

/// See the module.
pub(super) struct Answers {
    store: Arc<dyn Store>,
    kept_ns: i64,
    /// What will expire, oldest first.
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    answers: VecDeque<(i64, RequestId)>,
    ids: VecDeque<(i64, RequestId)>,
}

/// What is known of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing: do it.
    New,
    /// It was answered so, at that revision.
    Answered(Revision, Bytes),
}

impl Answers {
    pub(super) async fn load(store: Arc<dyn Store>, kept: Duration) -> Result<Arc<Self>, StoreError> {
        let mut waiting = Waiting::default();
        let each = |entry: crate::store::KeyValue| {
            let key = Key::decode(&entry.key).map_err(corrupt)?;
            if let (Key::Request(id), Record::Request(request)) =
                (&key, Record::decode(&key, &entry.versioned.value).map_err(corrupt)?)
            {
                match request.answer {
                    Answer::Expired => waiting.ids.push_back((request.at_ns, *id)),
                    Answer::Here(_) | Answer::Pages(_) => waiting.answers.push_back((request.at_ns, *id)),
                }
            }
            Ok(())
        };
        scan_all(&*store, prefix::REQUESTS, each).await?;
        waiting.answers.make_contiguous().sort_unstable();
        waiting.ids.make_contiguous().sort_unstable();
        let kept_ns = i64::try_from(kept.as_nanos()).unwrap_or(i64::MAX / REMEMBERED);
        Ok(Arc::new(Self { store, kept_ns, waiting: Mutex::new(waiting) }))
    }

    /// Whether a request was answered.
    ///
    /// Errors: [`Fault::Expired`] if its answer is gone; [`Fault::Invalid`] if the id was used for another.
    pub(super) async fn find(&self, id: RequestId, operations: &[u8; 32]) -> Result<Known, Refusal> {
        let key = Key::Request(id);
        let found = self.store.get(key.encode()).await.map_err(|error| refusal_of(&error))?;
        let Some(found) = found else { return Ok(Known::New) };
        let damaged = || Refusal::new(Fault::Corrupt, "a kept answer is damaged");
        let Ok(Record::Request(request)) = Record::decode(&key, &found.value) else { return Err(damaged()) };
        if request.operations != *operations {
            return Err(Refusal::new(Fault::Invalid, "this request id was used for other operations"));
        }
        let expired = now_ns().saturating_sub(request.at_ns) > self.kept_ns;
        match request.answer {
            Answer::Expired => {}
            _ if expired => {}
            Answer::Here(answer) => return Ok(Known::Answered(found.revision, answer)),
            Answer::Pages(pages) => {
                let stored = self.store.scan(prefix::answer(id), Bytes::new(), pages as usize).await;
                let stored = stored.map_err(|error| refusal_of(&error))?;
                if stored.entries.len() != pages as usize {
                    return Err(damaged());
                }
                let mut answer = BytesMut::new();
                stored.entries.iter().for_each(|entry| answer.extend_from_slice(&entry.versioned.value));
                return Ok(Known::Answered(found.revision, answer.freeze()));
            }
        }
        Err(Refusal::new(Fault::Expired, "this request was answered, too long ago for the answer to be kept"))
    }

    /// The records that keep an answer.
    pub(super) fn records(id: RequestId, operations: [u8; 32], at_ns: i64, answer: Bytes) -> Vec<Write> {
        let mut writes = Vec::new();
        let kept = if answer.len() <= HERE_BYTES {
            Answer::Here(answer)
        } else {
            for (number, page) in (0u32..).zip(answer.chunks(MAX_VALUE_BYTES)) {
                writes.push(put(Key::RequestPage(id, number), Record::Page(answer.slice_ref(page))));
            }
            Answer::Pages(u32::try_from(writes.len()).unwrap_or(u32::MAX))
        };
        writes.push(put(Key::Request(id), Record::Request(RequestRecord { at_ns, operations, answer: kept })));
        writes
    }

    /// An answer was committed.
    pub(super) fn kept(&self, id: RequestId, at_ns: i64) {
        self.waiting.lock().answers.push_back((at_ns, id));
    }

    /// Let go of what is old enough.
    pub(super) async fn expire(&self, now_ns: i64) -> Result<(), StoreError> {
        loop {
            let (answers, ids) = {
                let mut waiting = self.waiting.lock();
                let answers = due(&mut waiting.answers, now_ns.saturating_sub(self.kept_ns));
                let ids = due(&mut waiting.ids, now_ns.saturating_sub(self.kept_ns.saturating_mul(REMEMBERED)));
                (answers, ids)
            };
            if answers.is_empty() && ids.is_empty() {
                return Ok(());
            }
            let mut writes = Vec::new();
            for (_, id) in &answers {
                self.expire_one(*id, &mut writes).await?;
            }
            writes.extend(ids.iter().map(|(_, id)| Write { key: Key::Request(*id).encode(), value: None }));
            self.store.commit(Commit { conditions: Vec::new(), writes }).await?;
            self.waiting.lock().ids.extend(answers);
        }
    }

    async fn expire_one(&self, id: RequestId, writes: &mut Vec<Write>) -> Result<(), StoreError> {
        let key = Key::Request(id);
        let Some(found) = self.store.get(key.encode()).await? else { return Ok(()) };
        let Record::Request(request) = Record::decode(&key, &found.value).map_err(corrupt)? else { return Ok(()) };
        if let Answer::Pages(pages) = request.answer {
            let pages = (0..pages).map(|page| Write { key: Key::RequestPage(id, page).encode(), value: None });
            writes.extend(pages);
        }
        writes.push(put(key, Record::Request(RequestRecord { answer: Answer::Expired, ..request })));
        Ok(())
    }
}

fn due(queue: &mut VecDeque<(i64, RequestId)>, before_ns: i64) -> Vec<(i64, RequestId)> {
    let count = queue.iter().take(AT_ONCE).take_while(|(at_ns, _)| *at_ns <= before_ns).count();
    queue.drain(..count).collect()
}
