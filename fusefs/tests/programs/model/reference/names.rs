//! Names: what is where, and what making, moving and removing them does. PURE.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::{Index, Inode, Kind, Outcome, Reference, Result};

/// Longest chain of symbolic links that is followed.
const MOST_LINKS: usize = 40;

impl Reference {
    pub(super) fn list(&self, path: &[u8]) -> Result<Outcome> {
        let names = self.names(self.follow(path)?)?;
        Ok(Outcome::Names(names.keys().map(|name| char::from(*name).to_string()).collect()))
    }

    fn names(&self, index: Index) -> Result<&BTreeMap<u8, Index>> {
        match &self.inodes[index].kind {
            Kind::Folder(names) => Ok(names),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn names_mut(&mut self, index: Index) -> &mut BTreeMap<u8, Index> {
        match &mut self.inodes[index].kind {
            Kind::Folder(names) => names,
            _ => unreachable!("a parent is a folder"),
        }
    }

    /// The inode of a path, its last name not followed.
    pub(super) fn find(&self, path: &[u8]) -> Result<Index> {
        let Some((name, _)) = path.split_last() else { return Ok(0) };
        let parent = self.parent(path)?;
        self.names(parent)?.get(name).copied().ok_or(Errno::NOENT)
    }

    /// The inode of a path, all links followed.
    pub(super) fn follow(&self, path: &[u8]) -> Result<Index> {
        let names: Vec<String> = path.iter().map(|name| char::from(*name).to_string()).collect();
        self.walk(&[0], &names, &mut 0)?.last().copied().ok_or(Errno::NOENT)
    }

    /// The folder in which the last name of a path is.
    fn parent(&self, path: &[u8]) -> Result<Index> {
        let index = self.follow(&path[..path.len() - 1])?;
        self.names(index).map(|_| index)
    }

    /// Walk on from the last of `at`, which are the folders from the root; the way to what is found.
    fn walk(&self, at: &[Index], names: &[String], links: &mut usize) -> Result<Vec<Index>> {
        let mut way = at.to_vec();
        for name in names {
            let here = *way.last().expect("the root at least");
            let inside = self.names(here)?;
            if name == ".." {
                way.pop();
                // Above the folder of the run there is none of its names.
                if way.is_empty() {
                    return Err(Errno::NOENT);
                }
                continue;
            }
            let found = *inside.get(&name.as_bytes()[0]).ok_or(Errno::NOENT)?;
            match &self.inodes[found].kind {
                Kind::Link(target) => {
                    *links += 1;
                    if *links > MOST_LINKS {
                        return Err(Errno::LOOP);
                    }
                    let target: Vec<String> = target.split('/').map(str::to_owned).collect();
                    way = self.walk(&way, &target, links)?;
                }
                _ => way.push(found),
            }
        }
        Ok(way)
    }

    pub(super) fn add(&mut self, path: &[u8], kind: Kind, mode: u32) -> Result<Index> {
        let parent = self.parent(path)?;
        let name = path[path.len() - 1];
        if self.names(parent)?.contains_key(&name) {
            return Err(Errno::EXIST);
        }
        let index = self.inodes.len();
        self.inodes.push(Inode { kind, mode, links: 1 });
        self.names_mut(parent).insert(name, index);
        Ok(index)
    }

    pub(super) fn link(&mut self, from: &[u8], to: &[u8]) -> Result<()> {
        let index = self.find(from)?;
        let parent = self.parent(to)?;
        let name = to[to.len() - 1];
        if self.names(parent)?.contains_key(&name) {
            return Err(Errno::EXIST);
        }
        if matches!(self.inodes[index].kind, Kind::Folder(_)) {
            return Err(Errno::PERM);
        }
        self.inodes[index].links += 1;
        self.names_mut(parent).insert(name, index);
        Ok(())
    }

    pub(super) fn unlink(&mut self, path: &[u8]) -> Result<()> {
        let (parent, index) = (self.parent(path)?, self.find(path)?);
        if matches!(self.inodes[index].kind, Kind::Folder(_)) {
            return Err(Errno::ISDIR);
        }
        self.inodes[index].links -= 1;
        self.names_mut(parent).remove(&path[path.len() - 1]);
        Ok(())
    }

    pub(super) fn remove_folder(&mut self, path: &[u8]) -> Result<()> {
        let (parent, index) = (self.parent(path)?, self.find(path)?);
        if !self.names(index)?.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.names_mut(parent).remove(&path[path.len() - 1]);
        Ok(())
    }

    /// Whether `below` is `above` or lies in it; both are folders.
    fn is_inside(&self, below: Index, above: Index) -> bool {
        below == above || self.names(above).is_ok_and(|names| names.values().any(|next| self.is_inside(below, *next)))
    }

    /// The folders of both names, and what is renamed.
    fn both_ends(&self, from: &[u8], to: &[u8]) -> Result<(Index, Index, Index)> {
        let (from_parent, to_parent) = (self.parent(from)?, self.parent(to)?);
        let index = self.find(from)?;
        Ok((from_parent, to_parent, index))
    }

    pub(super) fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<()> {
        let (from_parent, to_parent, index) = self.both_ends(from, to)?;
        let over = self.find(to).ok();
        let is_folder = |index: Index| matches!(self.inodes[index].kind, Kind::Folder(_));
        if is_folder(index) && self.is_inside(to_parent, index) {
            return Err(Errno::INVAL);
        }
        if let Some(over) = over {
            if is_folder(over) && self.is_inside(from_parent, over) {
                return Err(Errno::NOTEMPTY);
            }
            if over == index {
                return Ok(());
            }
            match (is_folder(index), is_folder(over)) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) if !self.names(over)?.is_empty() => return Err(Errno::NOTEMPTY),
                _ => self.inodes[over].links -= 1,
            }
        }
        self.names_mut(from_parent).remove(&from[from.len() - 1]);
        self.names_mut(to_parent).insert(to[to.len() - 1], index);
        Ok(())
    }

    pub(super) fn exchange(&mut self, from: &[u8], to: &[u8]) -> Result<()> {
        let (from_parent, to_parent, index) = self.both_ends(from, to)?;
        let other = self.find(to)?;
        let is_folder = |index: Index| matches!(self.inodes[index].kind, Kind::Folder(_));
        let swallows = |folder: Index, parent: Index| is_folder(folder) && self.is_inside(parent, folder);
        if swallows(index, to_parent) || swallows(other, from_parent) {
            return Err(Errno::INVAL);
        }
        self.names_mut(from_parent).insert(from[from.len() - 1], other);
        self.names_mut(to_parent).insert(to[to.len() - 1], index);
        Ok(())
    }
}
