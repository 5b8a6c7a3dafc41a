//! **PURE.** Where each source goes, by the rules of `cp -r`; the same for `put` and `get`.
//!
//! Invariant: no two sources of one command get the same destination.

use std::collections::BTreeSet;

use super::exit::{Exit, Failure, Outcome};
use super::name::escape;

/// What is at the target now, links followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Present {
    /// Nothing.
    Nothing,
    /// A folder.
    Folder,
    /// Anything else.
    Other,
}

/// A source as the command line gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The path as given.
    pub path: Vec<u8>,
    /// Whether it is a folder.
    pub folder: bool,
}

/// The destination of each source, in their order.
///
/// Shape:  into `target` if that is a folder, else `target` itself names the copy of the only source.
///         `src/.`, `.`, `..` and `/` go onto the target folder itself, as their contents.
/// Errors: usage, or the target is no folder where one is needed.
/// Source: coreutils `cp`, `do_copy`.
pub fn destinations(sources: &[Source], target: &[u8], present: Present) -> Outcome<Vec<Vec<u8>>> {
    if target.is_empty() {
        return Err(Failure::usage("the target is empty: name a path, / for the top folder"));
    }
    let slash = target.len() > 1 && target.ends_with(b"/");
    let shown = escape(target);
    let [only] = sources else {
        return match (sources.is_empty(), present) {
            (true, _) => Err(Failure::usage("nothing to copy: name at least one source")),
            (_, Present::Folder) => into_folder(sources, target),
            (_, Present::Nothing) => {
                Err(Failure::new(Exit::NotFound, format!("{shown}: no such folder, and several sources need one")))
            }
            (_, Present::Other) => {
                Err(Failure::new(Exit::Failure, format!("{shown}: not a folder, and several sources need one")))
            }
        };
    };
    match present {
        Present::Folder => into_folder(sources, target),
        Present::Other if only.folder => {
            Err(Failure::new(Exit::Failure, format!("{shown}: is a file; {} is a folder", escape(&only.path))))
        }
        Present::Other if slash => Err(Failure::new(Exit::Failure, format!("{shown}: not a folder"))),
        Present::Nothing if slash && !only.folder => {
            Err(Failure::new(Exit::NotFound, format!("{shown}: no such folder")))
        }
        Present::Nothing | Present::Other => Ok(vec![trim(target).to_vec()]),
    }
}

fn into_folder(sources: &[Source], target: &[u8]) -> Outcome<Vec<Vec<u8>>> {
    let mut seen = BTreeSet::new();
    let mut destinations = Vec::with_capacity(sources.len());
    for source in sources {
        let destination = match last_name(&source.path) {
            Some(name) => join(target, name),
            None => trim(target).to_vec(),
        };
        // The contents of several folders may well go onto one.
        if !seen.insert(destination.clone()) && last_name(&source.path).is_some() {
            return Err(Failure::usage(format!(
                "{}: another source already goes to {}",
                escape(&source.path),
                escape(&destination)
            )));
        }
        destinations.push(destination);
    }
    Ok(destinations)
}

/// The last component of a path; none for `/`, and where it is `.` or `..`.
pub fn last_name(path: &[u8]) -> Option<&[u8]> {
    let name = trim(path).rsplit(|byte| *byte == b'/').next()?;
    (!matches!(name, b"" | b"." | b"..")).then_some(name)
}

/// The path of the folder that holds the last component: `/` for `/a`, empty for a bare name.
pub fn folder_of(path: &[u8]) -> &[u8] {
    let path = trim(path);
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) => b"/",
        Some(at) => trim(&path[..at]),
        None => b"",
    }
}

/// `name` in `folder`.
pub fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    let folder = trim(folder);
    let mut path = Vec::with_capacity(folder.len() + 1 + name.len());
    path.extend_from_slice(folder);
    if !folder.is_empty() && !folder.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Without trailing slashes, but `/` stays.
pub fn trim(path: &[u8]) -> &[u8] {
    let mut path = path;
    while path.len() > 1 && path.ends_with(b"/") {
        path = &path[..path.len() - 1];
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go(sources: &[(&str, bool)], target: &str, present: Present) -> Result<Vec<String>, Exit> {
        let sources: Vec<Source> =
            sources.iter().map(|(path, folder)| Source { path: path.as_bytes().to_vec(), folder: *folder }).collect();
        destinations(&sources, target.as_bytes(), present)
            .map(|paths| paths.into_iter().map(|path| String::from_utf8(path).unwrap()).collect())
            .map_err(|failure| failure.exit)
    }

    fn ok(paths: &[&str]) -> Result<Vec<String>, Exit> {
        Ok(paths.iter().map(|path| (*path).to_owned()).collect())
    }

    #[test]
    fn one_source_goes_into_a_folder_or_takes_the_targets_name() {
        assert_eq!(go(&[("d/a", false)], "/x", Present::Folder), ok(&["/x/a"]));
        assert_eq!(go(&[("d/a", false)], "/", Present::Folder), ok(&["/a"]));
        assert_eq!(go(&[("d/a", false)], "/x", Present::Nothing), ok(&["/x"]));
        assert_eq!(go(&[("d/a", false)], "/x", Present::Other), ok(&["/x"]));
        assert_eq!(go(&[("d/", true)], "/x", Present::Folder), ok(&["/x/d"]));
        assert_eq!(go(&[("d", true)], "/x", Present::Nothing), ok(&["/x"]));
        assert_eq!(go(&[("d", true)], "/x/", Present::Nothing), ok(&["/x"]));
    }

    #[test]
    fn a_slash_at_the_end_wants_a_folder() {
        assert_eq!(go(&[("a", false)], "/x/", Present::Nothing), Err(Exit::NotFound));
        assert_eq!(go(&[("a", false)], "/x/", Present::Other), Err(Exit::Failure));
        assert_eq!(go(&[("a", false)], "/x/", Present::Folder), ok(&["/x/a"]));
    }

    #[test]
    fn a_folder_does_not_replace_a_file() {
        assert_eq!(go(&[("d", true)], "/x", Present::Other), Err(Exit::Failure));
    }

    #[test]
    fn several_sources_need_a_folder_and_different_names() {
        assert_eq!(go(&[("a", false), ("b", true)], "/x", Present::Folder), ok(&["/x/a", "/x/b"]));
        assert_eq!(go(&[("a", false), ("b", true)], "/x", Present::Nothing), Err(Exit::NotFound));
        assert_eq!(go(&[("a", false), ("b", true)], "/x", Present::Other), Err(Exit::Failure));
        assert_eq!(go(&[("p/a", false), ("q/a", false)], "/x", Present::Folder), Err(Exit::Usage));
        assert_eq!(go(&[], "/x", Present::Folder), Err(Exit::Usage));
    }

    #[test]
    fn dot_means_the_contents() {
        assert_eq!(go(&[("d/.", true)], "/x", Present::Folder), ok(&["/x"]));
        assert_eq!(go(&[(".", true)], "/x/", Present::Folder), ok(&["/x"]));
        assert_eq!(go(&[("..", true)], "/x", Present::Nothing), ok(&["/x"]));
        assert_eq!(go(&[("/", true)], "/x", Present::Folder), ok(&["/x"]));
    }

    #[test]
    fn paths_come_apart_and_together() {
        assert_eq!((folder_of(b"/a/b/"), last_name(b"/a/b/")), (&b"/a"[..], Some(&b"b"[..])));
        assert_eq!((folder_of(b"/a"), folder_of(b"a"), last_name(b"/")), (&b"/"[..], &b""[..], None));
        assert_eq!(
            (join(b"/", b"a"), join(b"", b"a"), join(b"x//", b"a")),
            (b"/a".to_vec(), b"a".to_vec(), b"x/a".to_vec())
        );
    }
}
