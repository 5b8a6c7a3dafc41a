//! Two mounts of one swarm, and somebody who changes it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use swarm_fusefs::mount::MountConfig;

use super::swarm::{Swarm, eventually, noise};

#[test]
fn an_open_after_a_commit_sees_it_at_every_mount() {
    let swarm = Swarm::new(1);
    swarm.publish("/file", b"version 0");
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    for version in 1..20 {
        // Longer and shorter in turn.
        let text = format!("version {version}{}", "!".repeat(version % 2 * 40_000));
        swarm.publish("/file", text.as_bytes());
        for mounted in [&one, &two] {
            assert_eq!(std::fs::read_to_string(mounted.path("file")).unwrap(), text);
            let file = File::open(mounted.path("file")).unwrap();
            assert_eq!(file.metadata().unwrap().len(), text.len() as u64);
        }
    }
}

#[test]
fn whoever_goes_by_the_kernels_own_idea_of_the_size_sees_all_that_was_there_at_the_open() {
    let swarm = Swarm::new(1);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let out = File::create(swarm.folder("out")).unwrap();
    for round in 0..20_usize {
        // Longer each time, and once shorter.
        let text = noise(round as u64, 1_000 + 5_000 * (round % 15));
        std::fs::write(one.path("file"), &text).unwrap();
        if round % 3 == 2 {
            // Once the push has come, nothing is new at the open.
            std::thread::sleep(Duration::from_millis(30));
        }
        let file = match round % 2 {
            0 => File::open(two.path("file")).unwrap(),
            _ => File::options().read(true).write(true).open(two.path("file")).unwrap(),
        };
        let sent = rustix::fs::sendfile(&out, &file, Some(&mut 0), text.len() + 1).unwrap();
        assert_eq!(sent, text.len(), "round {round}");
    }
}

#[test]
fn a_name_that_somebody_else_replaced_or_removed_just_now_is_never_stale() {
    let swarm = Swarm::new(1);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    for round in 0..20 {
        swarm.publish("/file", b"old");
        eventually("the name shows", || std::fs::read(two.path("file")).is_ok());
        // Whether or not a file is held open, its name is what leads to it.
        let hold = || (round % 4 < 2).then(|| File::open(two.path("file")).unwrap());
        let held = hold();
        std::fs::write(one.path("new"), format!("new {round}")).unwrap();
        std::fs::rename(one.path("new"), one.path("file")).unwrap();
        // The kernel refuses by itself to link to what it was told has no name.
        if held.is_none() && round % 3 == 1 {
            std::fs::hard_link(two.path("file"), two.path("linked")).unwrap();
            let inode = |at: &std::path::Path| std::fs::metadata(at).unwrap().ino();
            assert_eq!(inode(&two.path("linked")), inode(&two.path("file")));
            std::fs::remove_file(two.path("linked")).unwrap();
        }
        if round % 3 == 0 {
            let mut file = File::options().append(true).open(two.path("file")).unwrap();
            file.write_all(b", appended").unwrap();
        }
        let text = ["new , appended", "new ", "new "][round % 3].replace("new ", &format!("new {round}"));
        assert_eq!(std::fs::read_to_string(two.path("file")).unwrap(), text);
        if let Some(mut held) = held {
            // It has no name, and is opened anew by those who say which it is.
            let fd = std::os::fd::AsRawFd::as_raw_fd(&held);
            assert_eq!(std::fs::read(format!("/proc/self/fd/{fd}")).unwrap(), b"old", "round {round}");
            let mut bytes = Vec::new();
            held.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, b"old");
        }
        let _held = hold();
        std::fs::remove_file(one.path("file")).unwrap();
        let gone = match round % 2 {
            0 => File::open(two.path("file")).map(drop),
            _ => File::options().write(true).open(two.path("file")).map(drop),
        };
        assert_eq!(gone.unwrap_err().kind(), std::io::ErrorKind::NotFound);
        std::fs::write(two.path("file"), b"made anew").unwrap();
        eventually("the name shows", || std::fs::read(one.path("file")).is_ok_and(|bytes| bytes == b"made anew"));
        std::fs::remove_file(two.path("file")).unwrap();
    }
}

#[test]
fn a_name_leads_to_what_it_names_also_where_the_file_that_it_named_lives_on() {
    let swarm = Swarm::new(1);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    let (file, other) = ("file", "other");
    let write = |name: &str, text: &str| std::fs::write(one.path(name), text).unwrap();
    for round in 0..30 {
        write(file, "old");
        eventually("the name shows", || std::fs::read(two.path(file)).is_ok_and(|bytes| bytes == b"old"));
        match round % 3 {
            0 => {
                std::fs::hard_link(one.path(file), one.path(other)).unwrap();
                write("new", "new");
                std::fs::rename(one.path("new"), one.path(file)).unwrap();
            }
            1 => {
                write(other, "new");
                let [one, another] = [one.path(file), one.path(other)];
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, another, exchange).unwrap();
            }
            _ => {
                std::fs::rename(one.path(file), one.path(other)).unwrap();
                write(file, "new");
            }
        }
        if round % 2 == 0 {
            assert_eq!(std::fs::read_to_string(two.path(file)).unwrap(), "new", "round {round}");
        }
        let mut writer = File::options().append(round % 4 > 1).write(true).open(two.path(file)).unwrap();
        writer.write_all(b", and more").unwrap();
        drop(writer);
        let text = std::fs::read_to_string(one.path(other)).unwrap();
        assert_eq!(text, "old", "round {round}: written to what has another name now");
        std::fs::remove_file(one.path(file)).unwrap();
        std::fs::remove_file(one.path(other)).unwrap();
    }
}

#[test]
fn what_somebody_made_since_is_opened_by_who_would_make_it() {
    let swarm = Swarm::new(1);
    let (one, two) = (swarm.mount("one"), swarm.mount("two"));
    for round in 0..30 {
        let name = format!("log-{round}");
        assert!(!two.path(&name).exists());
        std::fs::write(one.path(&name), "one\n").unwrap();
        let exclusive = File::options().write(true).create_new(true).open(two.path(&name));
        assert_eq!(exclusive.unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
        let name = format!("log-{round}-again");
        assert!(!two.path(&name).exists());
        std::fs::write(one.path(&name), "one\n").unwrap();
        let mut file = match round % 3 {
            0 => File::options().append(true).create(true).open(two.path(&name)).unwrap(),
            1 => File::create(two.path(&name)).unwrap(),
            _ => File::options().read(true).append(true).create(true).open(two.path(&name)).unwrap(),
        };
        file.write_all(b"two\n").unwrap();
        drop(file);
        let text = ["one\ntwo\n", "two\n", "one\ntwo\n"][round % 3];
        for mounted in [&one, &two] {
            assert_eq!(std::fs::read_to_string(mounted.path(&name)).unwrap(), text, "round {round}");
        }
    }
}

#[test]
fn with_writeback_a_mount_never_reads_less_than_it_wrote() {
    let swarm = Swarm::new(1);
    let config = MountConfig { writeback: true, ..swarm.config("cache") };
    let one = swarm.mount_with("one", config);
    let (counter, text) = (one.path("counter"), one.path("text"));
    std::fs::write(&counter, "0").unwrap();
    for round in 0..300_usize {
        let count: usize = std::fs::read_to_string(&counter).unwrap().parse().unwrap_or_else(|_| panic!("{round}"));
        assert_eq!(count, round, "what was counted");
        std::fs::write(&counter, (count + 1).to_string()).unwrap();
        // Shorter and longer in turn, by a rename, by an append.
        let content = "x".repeat(1 + round * 7 % 50);
        std::fs::write(one.path("new"), &content).unwrap();
        std::fs::rename(one.path("new"), &text).unwrap();
        assert_eq!(std::fs::read_to_string(&text).unwrap(), content, "round {round}");
        File::options().append(true).open(&text).unwrap().write_all(b"more").unwrap();
        assert_eq!(std::fs::metadata(&text).unwrap().len(), content.len() as u64 + 4, "round {round}");
        assert_eq!(std::fs::read_to_string(&text).unwrap(), format!("{content}more"), "round {round}");
    }
    let two = swarm.mount("two");
    eventually("all is saved", || std::fs::read_to_string(two.path("counter")).unwrap() == "300");
}

#[test]
fn an_open_after_a_commit_sees_it_also_in_the_middle_of_a_walk() {
    let swarm = Swarm::new(1);
    swarm.make_folder("/folder");
    let names: Vec<String> = (0..60).map(|index| format!("{index:02}")).collect();
    for name in &names {
        swarm.publish(format!("/folder/{name}"), b"0");
    }
    let mounted = swarm.mount("m");
    let read = |name: &String| std::fs::read_to_string(mounted.path("folder").join(name)).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Whoever walks asks for what comes next, and so holds it while it changes.
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::fs::read_dir(mounted.path("folder")).unwrap().for_each(drop);
                names.iter().for_each(|name| drop(read(name)));
            }
        });
        let stale = (1..40).find(|version: &usize| {
            let name = &names[version * 7 % names.len()];
            swarm.publish(format!("/folder/{name}"), version.to_string().as_bytes());
            read(name) != version.to_string()
        });
        // Before anything may fail: the walk goes on until then.
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(stale, None, "an open after the commit showed an older version");
    });
}

#[test]
fn names_that_are_made_moved_and_removed_show_within_a_second() {
    let swarm = Swarm::new(1);
    swarm.make_folder("/folder");
    let mounted = swarm.mount("m");
    let path = |name: &str| mounted.path("folder").join(name);
    let within_a_second = |what: &str, holds: &dyn Fn() -> bool| {
        let began = Instant::now();
        eventually(what, holds);
        assert!(began.elapsed() < Duration::from_secs(1), "{what} took {:?}", began.elapsed());
    };
    for round in 0..5 {
        let (first, second) = (format!("first-{round}"), format!("second-{round}"));
        assert!(!path(&first).exists() && !path(&second).exists());
        let names = || std::fs::read_dir(mounted.path("folder")).unwrap().count();
        assert_eq!(names(), 0);
        swarm.publish(format!("/folder/{first}"), b"x");
        within_a_second("a new name", &|| path(&first).exists() && names() == 1);
        swarm.rename(&format!("/folder/{first}"), &format!("/folder/{second}"));
        within_a_second("a new name for it", &|| path(&second).exists() && !path(&first).exists());
        swarm.remove(&format!("/folder/{second}"));
        within_a_second("its end", &|| !path(&second).exists() && names() == 0);
    }
}

#[test]
fn a_renamed_folder_keeps_what_is_below_it() {
    let swarm = Swarm::new(1);
    swarm.make_folder("/a");
    swarm.make_folder("/a/b");
    swarm.publish("/a/b/file", b"content");
    let mounted = swarm.mount("m");
    assert_eq!(std::fs::read(mounted.path("a/b/file")).unwrap(), b"content");
    swarm.rename("/a", "/c");
    eventually("it moved", || mounted.path("c/b/file").exists() && !mounted.path("a").exists());
    assert_eq!(std::fs::read(mounted.path("c/b/file")).unwrap(), b"content");
}

#[test]
fn an_open_file_outlives_its_name() {
    let swarm = Swarm::new(1);
    let bytes = noise(5, 3_000_000);
    swarm.publish("/file", &bytes);
    let mounted = swarm.mount("m");
    let file = File::open(mounted.path("file")).unwrap();
    let mut start = [0; 1000];
    file.read_exact_at(&mut start, 0).unwrap();
    swarm.remove("/file");
    eventually("the name is gone", || !mounted.path("file").exists());
    let mut all = vec![0; bytes.len()];
    file.read_exact_at(&mut all, 0).unwrap();
    assert!(all == bytes);
    assert_eq!(file.metadata().unwrap().nlink(), 0);
}

#[test]
fn names_and_attributes_are_asked_for_once() {
    let swarm = Swarm::new(1);
    swarm.make_folder("/folder");
    for index in 0..300 {
        swarm.publish(format!("/folder/{index:03}"), format!("content {index}").as_bytes());
    }
    let mounted = swarm.mount("m");
    let walk = || {
        let entries = std::fs::read_dir(mounted.path("folder")).unwrap();
        entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    let before = mounted.questions();
    let bytes = walk();
    assert!(mounted.questions() - before <= 3, "the folder, its entries and their attributes");
    let before = mounted.questions();
    assert_eq!(walk(), bytes);
    assert!(!mounted.path("folder/none").exists());
    assert_eq!(mounted.questions(), before);
}

#[test]
fn with_the_tracker_gone_open_files_go_on_and_the_rest_fails_in_time() {
    for offline_ok in [false, true] {
        let mut swarm = Swarm::new(1);
        let bytes = noise(6, 1_000_000);
        swarm.publish("/file", &bytes);
        let config = MountConfig { offline_ok, ..swarm.impatient("cache") };
        // Longer than the swarm's borrow: it outlives the tracker, not the swarm.
        let folder = swarm.folder("m");
        let mount = swarm.block_on(swarm_fusefs::mount::Mount::start(config, &folder, false)).unwrap();
        let file = File::open(folder.join("file")).unwrap();
        let mut all = vec![0; bytes.len()];
        file.read_exact_at(&mut all, 0).unwrap();
        swarm.stop_tracker();
        eventually("the stream is gone", || !mount.file_system().is_live());
        file.read_exact_at(&mut all, 0).unwrap();
        assert!(all == bytes);
        let named = || {
            let began = Instant::now();
            let read = std::fs::read(folder.join("file"));
            assert!(began.elapsed() < Duration::from_secs(15), "in time");
            read
        };
        // What was known of the name is good for a second.
        let good = Instant::now() + Duration::from_millis(1_100);
        let last = loop {
            let (begun, read) = (Instant::now(), named());
            if begun > good || read.is_err() {
                break read;
            }
            assert!(read.unwrap() == bytes);
        };
        match offline_ok {
            true => assert!(last.unwrap() == bytes),
            false => assert_eq!(last.unwrap_err().raw_os_error(), Some(110)),
        }
        drop(file);
        swarm.block_on(mount.unmount()).unwrap();
    }
}
