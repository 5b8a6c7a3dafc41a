//! What one mount closed, the next open at another sees; names and attributes show within a second.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::harness::{eventually, rounds};
use crate::place::Place;
use crate::worker::{Answer, Content, Task, Worker};

/// The promise about names and attributes.
const SHOWN_WITHIN: Duration = Duration::from_secs(1);

#[test]
fn an_open_after_another_mounts_close_sees_what_it_wrote() {
    let place = Place::two();
    let mut rng = SmallRng::seed_from_u64(11);
    let mut workers = [Worker::start(place.folder()), Worker::start(place.second())];
    let names = ["one", "two", "three"];
    let mut model = vec![Vec::new(); names.len()];
    for name in names {
        let content = Content { seed: 0, length: 0 };
        assert_eq!(workers[0].ask(&Task::Replace { name: name.to_owned(), content }), Answer::Done);
        eventually("a new name", Duration::from_secs(10), || place.second().join(name).exists());
    }
    let (began, all) = (Instant::now(), rounds(1_000, 10_000));
    for round in 0..all {
        let (index, writer) = (rng.random_range(0..names.len()), usize::from(rng.random_range(0..4) == 0));
        let task = change(&mut rng, names[index], &mut model[index], round as u64);
        assert_eq!(workers[writer].ask(&task), Answer::Done, "round {round}: {task:?}");
        let read = workers[1 - writer].ask(&Task::Read { name: names[index].to_owned() });
        assert_eq!(read, Answer::of(&model[index]), "round {round}: read after {task:?} at the other mount");
    }
    eprintln!("{all} times written, closed, opened and read took {:?}: no stale read", began.elapsed());
    place.end();
}

/// A change to a file, made to the model too.
fn change(rng: &mut SmallRng, name: &str, model: &mut Vec<u8>, seed: u64) -> Task {
    let name = name.to_owned();
    let longest = if rng.random_range(0..50) == 0 { 5_000_000 } else { 40_000 };
    let content = Content { seed, length: rng.random_range(0..longest) };
    match rng.random_range(0..6) {
        0 | 1 => {
            *model = content.bytes();
            Task::Replace { name, content }
        }
        2 => {
            let offset = rng.random_range(0..=model.len() + 10_000);
            let end = offset + content.length;
            if content.length > 0 {
                model.resize(model.len().max(end), 0);
                model[offset..end].copy_from_slice(&content.bytes());
            }
            Task::Patch { name, offset: offset as u64, content }
        }
        3 | 4 => {
            model.extend(content.bytes());
            Task::Append { name, content }
        }
        _ => {
            let length = rng.random_range(0..=model.len() + 10_000);
            model.resize(length, 0);
            Task::SetLength { name, length: length as u64 }
        }
    }
}

/// Look until `shows`, and remember the longest that it took.
#[track_caller]
fn shown(longest: &mut Duration, what: &str, path: &Path, shows: impl Fn(Option<Metadata>) -> bool) {
    let began = Instant::now();
    loop {
        let meta = path.symlink_metadata().ok();
        let text = format!("{meta:?}");
        if shows(meta) {
            break;
        }
        let late = began.elapsed();
        assert!(late < SHOWN_WITHIN, "{what} does not show at {} within {SHOWN_WITHIN:?}: {text}", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
    *longest = (*longest).max(began.elapsed());
}

#[test]
fn names_and_attributes_show_at_the_other_mount_within_a_second_without_an_open() {
    let place = Place::two();
    let mut longest = Duration::ZERO;
    for round in 0..rounds(8, 500) {
        // Either mount changes, the other looks.
        let (here, there) = match round % 2 {
            0 => (place.folder(), place.second()),
            _ => (place.second(), place.folder()),
        };
        let (here, there) = (|name: &str| here.join(name), |name: &str| there.join(name));
        let mut shown = |what: &str, name: &str, shows: &dyn Fn(Option<Metadata>) -> bool| {
            shown(&mut longest, &format!("round {round}: {what}"), &there(name), shows);
        };
        let gone = |meta: Option<Metadata>| meta.is_none();
        let names = |folder: &Path| {
            let entries = std::fs::read_dir(folder).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        // That nothing is there may be remembered.
        ["file", "moved", "folder", "link", "second"].iter().for_each(|name| shown("before", name, &gone));

        std::fs::write(here("file"), "12345").unwrap();
        shown("a new file", "file", &|meta| meta.is_some_and(|meta| meta.is_file() && meta.len() == 5));
        eventually("it is listed", SHOWN_WITHIN, || names(&here("")) == names(&there("")));
        std::fs::write(here("file"), "longer than before").unwrap();
        shown("its new length", "file", &|meta| meta.is_some_and(|meta| meta.len() == 18));
        std::fs::OpenOptions::new().write(true).open(here("file")).unwrap().set_len(3).unwrap();
        shown("that it is cut", "file", &|meta| meta.is_some_and(|meta| meta.len() == 3));
        std::fs::set_permissions(here("file"), PermissionsExt::from_mode(0o751)).unwrap();
        shown("its mode", "file", &|meta| meta.is_some_and(|meta| meta.mode() & 0o7777 == 0o751));
        let past = SystemTime::UNIX_EPOCH + Duration::new(1_500_000_000 + round as u64, 987_654_321);
        std::fs::File::open(here("file")).unwrap().set_modified(past).unwrap();
        shown("its time", "file", &|meta| meta.is_some_and(|meta| meta.modified().unwrap() == past));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(here("file"), Some(12), Some(34)).unwrap();
            shown("its owner", "file", &|meta| meta.is_some_and(|meta| (meta.uid(), meta.gid()) == (12, 34)));
        }
        std::fs::hard_link(here("file"), here("second")).unwrap();
        shown("a second name", "second", &|meta| meta.is_some_and(|meta| meta.nlink() == 2));
        shown("that it has two", "file", &|meta| meta.is_some_and(|meta| meta.nlink() == 2));
        std::fs::rename(here("file"), here("moved")).unwrap();
        shown("its other name", "moved", &|meta| meta.is_some());
        shown("the end of the old", "file", &gone);
        symlink("moved", here("link")).unwrap();
        shown("a link", "link", &|meta| meta.is_some_and(|meta| meta.is_symlink()));
        std::fs::create_dir(here("folder")).unwrap();
        shown("a folder", "folder", &|meta| meta.is_some_and(|meta| meta.is_dir()));
        std::fs::rename(here("moved"), here("folder/inside")).unwrap();
        shown("what moved into it", "folder/inside", &|meta| meta.is_some());

        std::fs::remove_file(here("folder/inside")).unwrap();
        shown("that one of two names went", "second", &|meta| meta.is_some_and(|meta| meta.nlink() == 1));
        std::fs::remove_dir(here("folder")).unwrap();
        ["second", "link"].iter().for_each(|name| std::fs::remove_file(here(name)).unwrap());
        ["folder", "second", "link"].iter().for_each(|name| shown("its end", name, &gone));
    }
    eprintln!("the longest that a name or attribute took to show at the other mount: {longest:?}");
    place.end();
}
