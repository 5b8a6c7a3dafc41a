//! A file that the kernel reads by itself, and who may have stored into it.
//!
//! The kernel lets whoever opens the mounted file for reading and writing map the cache's file meanwhile, and store into
//! that. Its time of the last write tells: the kernel sets it before a page can be stored into for the first time. Stores
//! into that page afterwards tell nothing, so such a file is never trusted again.

use std::fs::File;
use std::sync::Arc;
use std::time::SystemTime;

use super::{Bitmap, Entry, Stage};
use crate::store::cache::disk::{Files, Folder};

impl Entry {
    /// The whole file for the kernel, if every chunk was verified by this process; from then on nothing
    /// writes to it.
    pub(in crate::store::cache) fn seal(&self, folder: &Folder) -> Option<Arc<File>> {
        // Not to wait for a write of what cannot be whole yet.
        if !self.is_verified() {
            return None;
        }
        let _writing = self.writing.lock();
        if !self.is_verified() {
            return None;
        }
        let mut read_only = self.read_only.lock();
        let file = match read_only.upgrade() {
            Some(file) => file,
            None => Arc::new(folder.open_data_read_only(&self.digest).ok()?),
        };
        *read_only = Arc::downgrade(&file);
        let written = last_written(&file)?;
        match self.state.lock().sealed.get_or_insert(written) {
            sealed if *sealed == written => Some(file),
            _ => None,
        }
    }

    /// Whether somebody has stored into the file since the kernel was given it. What was read before this is asked may be
    /// trusted if not.
    ///
    /// Cost: one fstat(2) where the kernel was given it, else none.
    pub(in crate::store::cache) fn was_stored_to(&self, files: &Files) -> bool {
        match self.state.lock().sealed {
            None => false,
            Some(sealed) => last_written(&files.data) != Some(sealed),
        }
    }

    /// Nothing of it is here any more: its files cannot be trusted.
    pub(in crate::store::cache) fn distrust(&self) {
        let mut state = self.state.lock();
        let bits = self.layout.bits();
        (state.present, state.verified) = (Bitmap::empty(bits), Bitmap::empty(bits));
        state.stage = Stage::Gone;
        state.dirty.clear();
    }
}

fn last_written(file: &File) -> Option<SystemTime> {
    file.metadata().ok()?.modified().ok()
}
