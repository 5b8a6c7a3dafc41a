//! Telling whoever stored by a map into what cannot be saved: a file of the cache that the kernel reads by itself.
//!
//! Not how that is found out (`open_files`), nor that the cache trusts such a file no more, which it sees by itself.

use swarm_proto::InodeNumber;

use super::{FileSystem, Writer};
use crate::errno::Errno;

impl FileSystem {
    /// What a handle that is closed or synced may have stored by a map is saved.
    ///
    /// Errors: [`Errno::IO`] if it may not be: the handle can be mapped to be stored to, and while it was open somebody
    ///         stored into the cache.
    pub fn check_stores(&self, handle: u64) -> Result<(), Errno> {
        let Some(writing) = &self.writing else { return Ok(()) };
        if writing.open.lock().handles.get(&handle) != Some(&Writer::Reads) || !self.open.may_have_stored(handle) {
            return Ok(());
        }
        if let Some(inode) = self.open.inode_of(handle) {
            self.look_for_stores(inode);
        }
        Err(Errno::IO)
    }

    /// Say it once, also where nobody is left whose close could fail.
    pub(in crate::fs) fn look_for_stores(&self, inode: InodeNumber) {
        if self.open.take_untold_stores(inode) {
            tracing::error!(
                path = self.path_of(inode),
                "somebody stored into a shared map of a file while another process read it without the daemon: what was \
                 stored is not saved. Write it with write(2), or map the file while nobody else has it open"
            );
        }
    }
}
