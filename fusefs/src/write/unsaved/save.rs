//! A save that is under way: what it began with, and what becomes of the file when it is done.
//!
//! Not the sending and not the commit. Invariant: only what was unsaved at the stamp that the save began with is
//! settled; what was written since stays unsaved, over the new base.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use swarm_proto::{ByteRange, Extent};

use super::telling::Told;
use super::{Base, Early, Plan, Unsaved};
use crate::write::pieces::{Pieces, Sent, Source, Stamp};
use crate::write::spool::{SpoolFile, State};

/// All that a save needs, as of the moment that it began.
pub struct Save {
    /// Settle this when it is done.
    pub stamp: Stamp,
    /// What is replaced.
    pub base: Base,
    /// The file.
    pub pieces: Pieces,
    /// Its bytes.
    pub file: Option<Arc<SpoolFile>>,
    /// When it was written.
    pub modified_ns: i64,
    /// When it was changed.
    pub changed_ns: i64,
    /// If somebody said so.
    pub accessed_ns: Option<i64>,
    /// All that is unsaved was appended.
    pub appended: bool,
    /// What was sent already, by where it begins.
    pub early: BTreeMap<u64, Early>,
    /// What was sent and may have changed since: to be held until the commit, as seeders are sent nothing twice.
    pub held: Vec<Early>,
    /// What is sent as one segment each, whatever it was made of.
    pub joined: Option<Joined>,
}

/// Stretches of a file that were read for a save, to be sent whole.
pub struct Joined {
    /// Has their bytes, at their own offsets.
    pub file: Arc<File>,
    /// In order, none touching a hole.
    pub runs: Vec<ByteRange>,
}

impl Save {
    /// Where the bytes of a range are, as of the moment that it began.
    pub fn plan(&self, range: ByteRange) -> Plan {
        let pieces = self.pieces.over(range).collect();
        Plan { pieces, base: self.base.clone(), file: self.file.clone(), moves: 0 }
    }

    /// What of the spool is to be sent, in order.
    pub fn to_send(&self) -> Vec<ByteRange> {
        let mut left = self.pieces.clone();
        // What is joined is sent from elsewhere.
        self.runs().iter().for_each(|run| left.punch(*run, self.stamp));
        left.unsaved_in_spool()
    }

    /// What is sent as one segment each, in order.
    pub fn runs(&self) -> &[ByteRange] {
        self.joined.as_ref().map_or(&[], |joined| &joined.runs)
    }

    /// The extents of the file, as [`Pieces::extents`] has them.
    pub fn extents(&self, sent: &Sent) -> Option<Vec<Extent>> {
        let mut pieces = self.pieces.clone();
        self.runs().iter().for_each(|run| pieces.write(*run, self.stamp));
        pieces.extents(&self.base.manifest, sent)
    }
}

impl Unsaved {
    /// Begin to save it. None: nothing is unsaved.
    ///
    /// Shape: where the kernel writes it by itself, what [`Self::waits`] gave is waited for first; otherwise it is unsaved
    ///        again when this save is done.
    pub fn begin_save(&self) -> Option<Save> {
        // Not `locked`: the time that was seen before the waiting is the one that counts.
        let mut inner = self.inner.lock();
        let again = inner.absorb_to_save();
        if !inner.is_dirty() {
            return None;
        }
        let stamp = inner.stamp;
        inner.stamp += 1;
        let early = inner.early.clone();
        let is_sure = inner.passed.is_none();
        let save = Save {
            stamp,
            base: inner.base.clone(),
            pieces: inner.pieces.clone(),
            file: inner.file.clone(),
            modified_ns: inner.modified_ns.unwrap_or_default(),
            changed_ns: inner.changed_ns.unwrap_or_default(),
            accessed_ns: inner.accessed_ns,
            appended: inner.is_appended(),
            early: if is_sure { early.clone() } else { BTreeMap::new() },
            held: if is_sure { Vec::new() } else { early.into_values().collect() },
            joined: None,
        };
        if again {
            inner.change_behind();
        }
        Some(save)
    }

    /// Tell the journal that what is unsaved now is being saved: if this process dies, the next one goes on.
    pub fn tell_saving(&self) {
        let mut inner = self.locked();
        if let (Some(file), Some(note)) =
            (inner.file.clone(), self.note_of(&inner, State::Saving, inner.trouble.clone()))
        {
            file.saving(note);
            inner.told = Told::Saving;
        }
    }

    /// Saving it failed: tell the journal why, for a person who asks meanwhile.
    pub fn tell_failed(&self, why: &str) {
        let mut inner = self.locked();
        inner.trouble = Some(why.to_owned());
        // Not anew that it is being saved: nobody has asked for what was written since.
        if let Some(file) = inner.file.as_ref().filter(|_| inner.told != Told::Nothing) {
            file.failed(why);
        }
    }

    /// What was unsaved at `stamp` is saved, and is the base from now on.
    pub fn settle(&self, stamp: Stamp, base: Base) {
        let mut inner = self.locked();
        inner.pieces.settle(stamp);
        (inner.base, inner.trouble) = (base, None);
        inner.not_appended = inner.not_appended.filter(|at| *at > stamp);
        inner.timed = inner.timed.filter(|at| *at > stamp);
        inner.early.clear();
        if !inner.is_dirty() {
            (inner.modified_ns, inner.changed_ns, inner.accessed_ns) = (None, None, None);
        }
        self.tell_anew(&mut inner);
    }

    /// Whether nothing of a range was changed after `stamp`.
    pub fn is_as_at(&self, range: ByteRange, stamp: Stamp) -> bool {
        self.locked().pieces.is_as_at(range, stamp)
    }

    /// Whether all bytes of a range are in the spool now, saved or not.
    pub fn is_in_spool(&self, range: ByteRange) -> bool {
        let inner = self.inner.lock();
        range.end <= inner.pieces.size() && inner.pieces.over(range).all(|(_, source)| source == Source::Spool)
    }

    /// The base has these in one: what of the spool is saved there is not needed any more.
    pub fn leave_to_base(&self, runs: &[ByteRange]) {
        let mut inner = self.locked();
        // The kernel reads the data file by itself.
        if inner.passed.is_some() {
            return;
        }
        inner.whole = false;
        let saved: Vec<ByteRange> = runs.iter().flat_map(|run| inner.pieces.leave_to_base(*run)).collect();
        inner.moves += 1;
        if let Some(file) = inner.file.clone() {
            saved.into_iter().for_each(|range| inner.forget(&file, range));
        }
        self.tell_anew(&mut inner);
    }
}
