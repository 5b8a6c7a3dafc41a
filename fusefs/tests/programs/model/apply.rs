//! Operations done to real folders, and compared with the model.

use std::collections::BTreeSet;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::operation::{Access, Operation, Path, SLOTS, View};
use super::reference::{Outcome, Reference};
use crate::place::Place;

/// The promise about names and attributes of another mount.
const SHOWN_WITHIN: Duration = Duration::from_secs(1);

/// A history under way: the model, both folders, and what each view must still come to show.
pub(crate) struct Runner {
    reference: Reference,
    folders: [PathBuf; 2],
    handles: [[Option<File>; SLOTS]; 2],
    /// Names that the other view changed since this one was last seen to show them.
    unseen: [BTreeSet<Path>; 2],
    /// When each view last changed anything.
    changed: [Instant; 2],
    pages: Pages,
    steps: usize,
}

/// What the kernel still has when a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pages {
    /// What it has kept: most reads never come to the mount.
    Kept,
    /// No page of that file; and now and then nothing at all, neither names nor attributes (root).
    Dropped,
}

/// So many steps, and the kernel loses all that it can do without.
const ALL_DROPPED_EVERY: usize = 25;

impl Pages {
    fn before_read(self, file: &File) {
        if self == Self::Dropped {
            rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
    }

    fn before_step(self, step: usize) {
        if self == Self::Dropped && step.is_multiple_of(ALL_DROPPED_EVERY) {
            // Only root may; the pages go without that too.
            std::fs::write("/proc/sys/vm/drop_caches", "3").ok();
        }
    }
}

impl Runner {
    pub(crate) fn new(place: &Place, name: &str, pages: Pages) -> Self {
        let folders = [place.folder().join(name), place.second().join(name)];
        std::fs::create_dir(&folders[0]).unwrap();
        std::fs::set_permissions(&folders[0], PermissionsExt::from_mode(0o755)).unwrap();
        crate::harness::eventually("the folder of the run", Duration::from_secs(10), || folders[1].exists());
        let reference = Reference::new(super::views(place));
        let now = Instant::now();
        let (handles, unseen) = Default::default();
        Self { reference, folders, handles, unseen, changed: [now; 2], pages, steps: 0 }
    }

    /// Do one operation to the model and to the folder of its view.
    pub(crate) fn step(&mut self, operation: &Operation) -> Result<(), String> {
        let view = operation.view();
        if !self.reference.has_one_answer(operation) {
            return Ok(());
        }
        self.steps += 1;
        self.pages.before_step(self.steps);
        self.see_names(view)?;
        let want = self.reference.apply(operation).expect("it has one answer");
        let mut got = self.act(operation);
        // What is only looked at may show the other mount's doings a little later; an open may not.
        let looks = matches!(operation, Operation::Stat { .. } | Operation::List { .. });
        while looks && !want.allows(&got) && self.changed[1 - view].elapsed() < SHOWN_WITHIN {
            std::thread::sleep(Duration::from_millis(1));
            got = self.act(operation);
        }
        if !want.allows(&got) {
            return Err(format!("got {}, the model says {}", short(&got), short(&want)));
        }
        if !looks {
            self.changed[view] = Instant::now();
            self.unseen[1 - view].extend(operation.names());
        }
        Ok(())
    }

    /// Wait until a view shows the names that the other gave and took.
    fn see_names(&mut self, view: View) -> Result<(), String> {
        let unseen = std::mem::take(&mut self.unseen[view]);
        if self.folders[0] == self.folders[1] {
            return Ok(());
        }
        let limit = self.changed[1 - view] + SHOWN_WITHIN;
        for path in unseen {
            let at = |view: View| {
                let meta = self.folders[view].join(path.to_string()).symlink_metadata().ok();
                meta.map(|meta| (meta.ino(), kind(&meta)))
            };
            let model = self.reference.kind_of(&path);
            while at(view) != at(1 - view) || at(view).map(|(_, kind)| kind) != model {
                if Instant::now() > limit {
                    let (here, there) = (at(view), at(1 - view));
                    let name = path.to_string();
                    return Err(format!(
                        "view {view} shows {here:?} at {name} a second after the other changed it to {there:?} \
                         ({model:?} in the model)"
                    ));
                }
                std::thread::sleep(Duration::from_micros(300));
            }
        }
        Ok(())
    }

    fn act(&mut self, operation: &Operation) -> Outcome {
        let folder = self.folders[operation.view()].clone();
        let at = |path: &Path| folder.join(path.to_string());
        let outcome = act(&mut self.handles[operation.view()], &at, self.pages, operation);
        outcome.unwrap_or_else(|error| {
            Outcome::Failed(Errno::from_io_error(&error).unwrap_or_else(|| panic!("{operation:?}: {error}")))
        })
    }
}

fn act(
    handles: &mut [Option<File>; SLOTS],
    at: &dyn Fn(&Path) -> PathBuf,
    pages: Pages,
    operation: &Operation,
) -> std::io::Result<Outcome> {
    let to_write = || OpenOptions::new().write(true).to_owned();
    match operation {
        Operation::Create { path, .. } => {
            let file = to_write().create_new(true).open(at(path))?;
            file.set_permissions(PermissionsExt::from_mode(0o644))?;
        }
        Operation::Write { path, offset, bytes, .. } => {
            to_write().open(at(path))?.write_all_at(&bytes.make(), *offset as u64)?;
        }
        Operation::SetLength { path, length, .. } => to_write().open(at(path))?.set_len(*length as u64)?,
        Operation::Truncate { path, .. } => drop(to_write().truncate(true).open(at(path))?),
        Operation::Read { path, .. } => {
            let (mut file, mut bytes) = (File::open(at(path))?, Vec::new());
            pages.before_read(&file);
            file.read_to_end(&mut bytes)?;
            return Ok(Outcome::Bytes(bytes));
        }
        Operation::Stat { path, .. } => return Ok(attributes(&at(path).symlink_metadata()?)),
        Operation::List { path, .. } => {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(at(path))? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            return Ok(Outcome::Names(names));
        }
        Operation::ReadLink { path, .. } => {
            return Ok(Outcome::Target(std::fs::read_link(at(path))?.to_string_lossy().into_owned()));
        }
        Operation::Chmod { path, mode, .. } => {
            std::fs::set_permissions(at(path), PermissionsExt::from_mode(*mode))?;
        }
        Operation::Rename { from, to, .. } => std::fs::rename(at(from), at(to))?,
        Operation::Exchange { from, to, .. } => renameat_with(CWD, at(from), CWD, at(to), RenameFlags::EXCHANGE)?,
        Operation::Link { from, to, .. } => std::fs::hard_link(at(from), at(to))?,
        Operation::Symlink { path, target, .. } => symlink(target, at(path))?,
        Operation::MakeFolder { path, .. } => {
            std::fs::create_dir(at(path))?;
            std::fs::set_permissions(at(path), PermissionsExt::from_mode(0o755))?;
        }
        Operation::Unlink { path, .. } => rustix::fs::unlink(at(path))?,
        Operation::RemoveFolder { path, .. } => rustix::fs::rmdir(at(path))?,
        Operation::Open { slot, path, access, .. } => {
            let opened = OpenOptions::new().read(true).write(*access == Access::Write).open(at(path))?;
            // A folder opens for reading; what is meant is to read it as a file.
            if opened.metadata()?.is_dir() {
                return Err(Errno::ISDIR.into());
            }
            handles[*slot] = Some(opened);
        }
        Operation::HandleRead { slot, .. } => {
            let file = handles[*slot].as_ref().expect("open");
            pages.before_read(file);
            return Ok(Outcome::Bytes(read_all(file)?));
        }
        Operation::HandleWrite { slot, offset, bytes, .. } => {
            handles[*slot].as_ref().expect("open").write_all_at(&bytes.make(), *offset as u64)?;
        }
        Operation::HandleSetLength { slot, length, .. } => {
            handles[*slot].as_ref().expect("open").set_len(*length as u64)?;
        }
        Operation::HandleSync { slot, .. } => handles[*slot].as_ref().expect("open").sync_all()?,
        Operation::HandleClose { slot, .. } => drop(handles[*slot].take().expect("open")),
    }
    Ok(Outcome::Done)
}

fn read_all(file: &File) -> std::io::Result<Vec<u8>> {
    let (mut bytes, mut block) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        match file.read_at(&mut block, bytes.len() as u64)? {
            0 => return Ok(bytes),
            count => bytes.extend_from_slice(&block[..count]),
        }
    }
}

fn kind(meta: &Metadata) -> &'static str {
    match meta.file_type() {
        kind if kind.is_dir() => "folder",
        kind if kind.is_symlink() => "link",
        _ => "file",
    }
}

fn attributes(meta: &Metadata) -> Outcome {
    let of_files = |value: u64| (!meta.is_dir()).then(|| usize::try_from(value).expect("small"));
    Outcome::Attributes {
        kind: kind(meta),
        mode: meta.mode() & 0o7777,
        length: of_files(meta.len()),
        links: of_files(meta.nlink()),
    }
}

/// An outcome in few words.
fn short(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Bytes(bytes) => {
            let end = bytes.len().min(8);
            format!("{} bytes, hash {}, {:02x?}…", bytes.len(), &blake3::hash(bytes).to_hex()[..8], &bytes[..end])
        }
        Outcome::EitherBytes(one, other) => {
            format!("{} or {}", short(&Outcome::Bytes(one.clone())), short(&Outcome::Bytes(other.clone())))
        }
        other => format!("{other:?}"),
    }
}
