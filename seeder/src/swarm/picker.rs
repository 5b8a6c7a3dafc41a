//! **PURE.** Which holder takes the next run, and how long that run is.
//!
//! Late binding: a run is given to a peer only when the peer has room for it, so that a peer that turns
//! out slow has little to be slow with. Invariant: a run goes to a candidate that has room, or nowhere.

use std::cmp::Ordering;

use swarm_proto::CHUNK_BYTES;

/// Predicted ends within this factor, and [`SAME_TIME`], of the best are taken as equal; rates measured
/// in the same network scatter that much, and equal seeders shall share evenly.
const SAME_FACTOR: f64 = 2.0;
const SAME_TIME: f64 = 0.002;

/// The same for holders in one's own zone: the way to others costs more than time.
const ZONE_FACTOR: f64 = 4.0;
const ZONE_TIME: f64 = 0.020;

/// A slow peer is left idle if a better one, although full, would end so much sooner.
const WORSE_TIME: f64 = 0.005;

/// Bytes by which candidates are compared.
const NOMINAL: u64 = 64 * 1024;

/// A holder that could be asked now.
#[derive(Debug, Clone)]
pub(super) struct Candidate<K> {
    pub(super) key: K,
    /// Bytes a second.
    pub(super) rate: f64,
    /// Seconds.
    pub(super) latency: f64,
    /// Bytes asked for that did not come yet.
    pub(super) outstanding: u64,
    /// The run that suits it, and the smallest that pays.
    pub(super) run_bytes: u64,
    pub(super) smallest_run: u64,
    /// Bytes it was asked for lately.
    pub(super) recent: f64,
    pub(super) same_zone: bool,
    /// It has the whole segment.
    pub(super) whole: bool,
    /// Bytes of the run in question that it has from its start on.
    pub(super) has_bytes: u64,
    /// Whether it has room for so many bytes more.
    pub(super) room: bool,
}

impl<K> Candidate<K> {
    fn end(&self, bytes: u64) -> f64 {
        self.latency + (self.outstanding + bytes) as f64 / self.rate.max(1.0)
    }

    /// Whether it is as good as the best.
    fn is_same(&self, bytes: u64, best_end: f64) -> bool {
        let (factor, time) = if self.same_zone { (ZONE_FACTOR, ZONE_TIME) } else { (SAME_FACTOR, SAME_TIME) };
        self.end(bytes) <= best_end * factor + time
    }
}

/// Choose.
///
/// Shape:   `run_bytes` is the contiguous run that is wanted, `queue_bytes` all that is wanted (at least
///          the run). Returns the candidate's index and how many bytes of the run it takes.
/// Returns: `None` if it is better to wait for a candidate that has no room now.
/// Cost:    O(candidates).
pub(super) fn pick<K>(candidates: &[Candidate<K>], run_bytes: u64, queue_bytes: u64) -> Option<(usize, u64)> {
    let nominal = run_bytes.min(NOMINAL);
    let best_end = candidates.iter().map(|candidate| candidate.end(nominal)).fold(f64::INFINITY, f64::min);
    let all_rates: f64 = candidates.iter().map(|candidate| candidate.rate).sum();
    let all_bytes = queue_bytes + candidates.iter().map(|candidate| candidate.outstanding).sum::<u64>();
    let all_end = all_bytes as f64 / all_rates.max(1.0);
    let tolerable = |candidate: &Candidate<K>| {
        let worse = (best_end * SAME_FACTOR + WORSE_TIME).max(all_end / 2.0);
        candidate.end(nominal) <= worse || candidate.is_same(nominal, best_end)
    };

    let (at, chosen) = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| candidate.room && tolerable(candidate))
        .min_by(|(_, a), (_, b)| better(a, b, nominal, best_end))?;

    let share = queue_bytes as f64 * chosen.rate / all_rates.max(1.0) / 2.0;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "smaller than queue_bytes")]
    let share = (share as u64).max(chosen.smallest_run).min(chosen.run_bytes);
    let bytes = share.min(run_bytes);
    // A rest smaller than what pays is not worth a request of its own.
    let rest = run_bytes - bytes;
    let bytes = if rest < chosen.smallest_run.min(bytes / 2 + 1) { run_bytes } else { bytes };
    Some((at, bytes.min(chosen.has_bytes).max(u64::from(CHUNK_BYTES))))
}

fn better<K>(a: &Candidate<K>, b: &Candidate<K>, nominal: u64, best_end: f64) -> Ordering {
    match (a.is_same(nominal, best_end), b.is_same(nominal, best_end)) {
        (true, true) => {}
        (false, false) => return a.end(nominal).total_cmp(&b.end(nominal)),
        (a_is, _) => return if a_is { Ordering::Less } else { Ordering::Greater },
    }
    b.same_zone
        .cmp(&a.same_zone)
        .then(b.whole.cmp(&a.whole))
        .then(a.outstanding.cmp(&b.outstanding))
        .then(a.recent.total_cmp(&b.recent))
}

#[cfg(test)]
mod tests;
