//! What can be done, by whom. PURE.

/// One of the two mounts.
pub(crate) type View = usize;

/// A place for an open file; each view has some.
pub(crate) type Slot = usize;

/// Open files that a view can have.
pub(crate) const SLOTS: usize = 4;

/// Names of one letter below the folder of the run, outermost first.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Path(pub(crate) Vec<u8>);

impl std::ops::Deref for Path {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> = self.iter().map(|name| char::from(*name).to_string()).collect();
        out.write_str(&names.join("/"))
    }
}

impl std::fmt::Debug for Path {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "\"{self}\"")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Bytes written: `length` times a value that follows from `fill` and the offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes {
    pub(crate) fill: u8,
    pub(crate) length: usize,
}

impl Bytes {
    pub(crate) fn make(self) -> Vec<u8> {
        let value = |index: usize| self.fill.wrapping_add(u8::try_from(index / 64 % 251).expect("below 251")) | 1;
        (0..self.length).map(value).collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    /// `O_CREAT | O_EXCL`, closed at once.
    Create {
        view: View,
        path: Path,
    },
    /// Open for writing, not creating; write; close.
    Write {
        view: View,
        path: Path,
        offset: usize,
        bytes: Bytes,
    },
    /// Open for writing, set the length, close.
    SetLength {
        view: View,
        path: Path,
        length: usize,
    },
    /// Open with `O_TRUNC`, close.
    Truncate {
        view: View,
        path: Path,
    },
    Read {
        view: View,
        path: Path,
    },
    Stat {
        view: View,
        path: Path,
    },
    List {
        view: View,
        path: Path,
    },
    ReadLink {
        view: View,
        path: Path,
    },
    Chmod {
        view: View,
        path: Path,
        mode: u32,
    },
    Rename {
        view: View,
        from: Path,
        to: Path,
    },
    Exchange {
        view: View,
        from: Path,
        to: Path,
    },
    Link {
        view: View,
        from: Path,
        to: Path,
    },
    /// A link that says `target`, a name beside it or one above.
    Symlink {
        view: View,
        path: Path,
        target: String,
    },
    MakeFolder {
        view: View,
        path: Path,
    },
    Unlink {
        view: View,
        path: Path,
    },
    RemoveFolder {
        view: View,
        path: Path,
    },
    Open {
        view: View,
        slot: Slot,
        path: Path,
        access: Access,
    },
    HandleRead {
        view: View,
        slot: Slot,
    },
    HandleWrite {
        view: View,
        slot: Slot,
        offset: usize,
        bytes: Bytes,
    },
    HandleSetLength {
        view: View,
        slot: Slot,
        length: usize,
    },
    HandleSync {
        view: View,
        slot: Slot,
    },
    HandleClose {
        view: View,
        slot: Slot,
    },
}

impl Operation {
    pub(crate) fn view(&self) -> View {
        match self {
            Self::Create { view, .. }
            | Self::Write { view, .. }
            | Self::SetLength { view, .. }
            | Self::Truncate { view, .. }
            | Self::Read { view, .. }
            | Self::Stat { view, .. }
            | Self::List { view, .. }
            | Self::ReadLink { view, .. }
            | Self::Chmod { view, .. }
            | Self::Rename { view, .. }
            | Self::Exchange { view, .. }
            | Self::Link { view, .. }
            | Self::Symlink { view, .. }
            | Self::MakeFolder { view, .. }
            | Self::Unlink { view, .. }
            | Self::RemoveFolder { view, .. }
            | Self::Open { view, .. }
            | Self::HandleRead { view, .. }
            | Self::HandleWrite { view, .. }
            | Self::HandleSetLength { view, .. }
            | Self::HandleSync { view, .. }
            | Self::HandleClose { view, .. } => *view,
        }
    }

    /// The names it may give, take or change.
    pub(crate) fn names(&self) -> Vec<Path> {
        match self {
            Self::Create { path, .. }
            | Self::Symlink { path, .. }
            | Self::MakeFolder { path, .. }
            | Self::Unlink { path, .. }
            | Self::RemoveFolder { path, .. } => vec![path.clone()],
            Self::Rename { from, to, .. } | Self::Exchange { from, to, .. } => vec![from.clone(), to.clone()],
            Self::Link { to, .. } => vec![to.clone()],
            _ => Vec::new(),
        }
    }
}
