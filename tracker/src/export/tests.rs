//! A catalog that goes out as a file and comes in again, whole, cut or damaged.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use swarm_proto::{Extent, Fault, InodeNumber, Manifest, PeerId};

use super::format::{Item, ItemReader, ItemWriter};
use super::*;
use crate::catalog::tests::{
    ROOT, Running, all_reclaimed, at, directory, eventually, manifest, publish, rebuilt, segment, unlink,
};
use crate::catalog::writer::Submitted;
use crate::namespace::plan::{Attributes, ExtendedChange, Inherit, Operation, Ownership, Special};
use crate::namespace::{Body, Device, DeviceKind, ExtendedName, Image, Name, Refusal};
use crate::store::schema::{SeederRecord, Settings};
use crate::store::{MemoryStore, Store};

async fn filled() -> Running {
    let running = Running::hasty().await;
    let below = running.make(ROOT, "folder").await;
    let odd = running.make(below, "odd \n\u{fffd}").await;
    for n in 0..700 {
        running.run(vec![publish(odd, &format!("file {n}"), &manifest(n, n % 5))]).await;
    }
    // Holes, attributes, a time of its own, and a device.
    let holes = Manifest::new(vec![Extent::Hole { length: 9 }, Extent::whole(segment(1))]).unwrap();
    let sparse = running.one(publish(odd, "sparse", &holes)).await.unwrap().unwrap().0;
    let times = Attributes { accessed_ns: Some(77), ..Attributes::default() };
    let name = ExtendedName::new(b"user.x").unwrap();
    let device = Device { kind: DeviceKind::Block, number: 0x0801 };
    let ownership = Ownership { mode: 0o600, uid: 0, gid: 6, modified_ns: 5, inherit: Inherit::Nothing };
    let operations = [
        Operation::SetAttributes(sparse, times),
        Operation::SetExtended(sparse, name, ExtendedChange::Set("value".into())),
        Operation::MakeSpecial(at(odd, "device"), ownership, Special::Device(device)),
    ];
    running.run(operations.map(Submitted::Plain).into()).await;
    // One in pages, two with the same content, and one that is gone.
    running.run(vec![publish(below, "large", &manifest(5, 1_300)), publish(ROOT, "twin", &manifest(1, 1))]).await;
    running.run(vec![publish(ROOT, "gone", &manifest(900, 2)), unlink(ROOT, "gone")]).await;
    running
}

async fn export(running: &Running) -> Result<Bytes, Refusal> {
    let mut parts = running.catalog.export().await;
    let mut file = BytesMut::new();
    while let Some(part) = parts.recv().await {
        let part = part?;
        assert!(part.len() <= format::PIECE_BYTES);
        file.extend_from_slice(&part);
    }
    Ok(file.freeze())
}

async fn import(running: &Running, file: &[u8], piece: usize, replace: Replace) -> Result<Imported, Refusal> {
    let mut import = running.catalog.import(replace).await?;
    for piece in file.chunks(piece) {
        import.push(piece).await?;
    }
    import.finish(replace, &[]).await
}

/// Every path with what is there; inode numbers as the smallest path that names them.
fn paths(image: &Image) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![(InodeNumber::ROOT, String::new())];
    while let Some((inode, path)) = left.pop() {
        let node = image.node(inode).unwrap();
        let what = match &node.body {
            Body::File(content) => format!("{} {} {:?}", content.size, content.allocated, content.manifest),
            Body::Directory { .. } => "directory".to_owned(),
            other => format!("{other:?}"),
        };
        let times = [node.accessed_ns, node.modified_ns, node.created_ns];
        found.push(format!(
            "{path} {:o} {} {} {} {times:?} {:?} {what}",
            node.mode, node.uid, node.gid, node.links, node.extended
        ));
        left.extend(image.list(inode, None).map(|(name, inode)| (inode, format!("{path}/{name:?}"))));
    }
    found.sort();
    found
}

#[tokio::test]
async fn an_empty_catalog_becomes_the_one_that_was_exported() {
    let old = filled().await;
    let seeder = SeederRecord {
        host: "h".into(),
        zone: "z".into(),
        address: "a:1".into(),
        capacity_bytes: 1,
        draining: false,
        last_seen_ns: 2,
    };
    let id = PeerId::random();
    old.catalog.put_seeder(id, seeder.clone()).await.unwrap();
    old.catalog.set_settings(Settings { replicas: 4, min_replicas: 3 }).await.unwrap();
    let file = export(&old).await.unwrap();
    let new = Running::in_memory().await;
    // It may have knocked already.
    new.catalog.put_seeder(id, SeederRecord { last_seen_ns: 99, ..seeder.clone() }).await.unwrap();
    let mut watch = new.catalog.watch(new.catalog.revision());
    let imported = import(&new, &file, 1_000, Replace::Empty).await.unwrap();
    let counts = old.catalog.counts();
    assert_eq!((imported.files, imported.directories), (counts.files, counts.directories));
    assert!(new.catalog.revision() >= imported.revision);
    assert_eq!(paths(&new.catalog.view().image), paths(&old.catalog.view().image));
    let stored = rebuilt(&new.catalog).await;
    assert_eq!(new.catalog.view().image, stored);
    assert_eq!(new.catalog.swarm_id(), old.catalog.swarm_id(), "its seeders know it again");
    assert_eq!(new.catalog.settings(), Settings { replicas: 4, min_replicas: 3 });
    assert_eq!(new.catalog.seeders().await.unwrap(), [(id, seeder)]);
    let digests: Vec<_> = new.catalog.view().image.live_manifests().copied().collect();
    for digest in digests {
        new.catalog.manifests().forget_cached();
        assert!(new.catalog.manifests().whole(digest, usize::MAX).await.unwrap().is_some());
    }
    // Whoever watched is told to forget all.
    while let Ok((revision, _)) = watch.next().await {
        assert!(revision < imported.revision);
    }
    new.make(ROOT, "goes on").await;
    assert_eq!(export(&old).await.unwrap().len(), file.len(), "an export changes nothing");
}

/// As the program before this one wrote it: the inodes without what it did not know.
fn in_the_old_layout(file: &[u8]) -> Vec<u8> {
    let (body, _) = file.split_at(file.len() - 32);
    let (start, mut rest) = body.split_at(12);
    let mut out = start.to_vec();
    while let Some((kind, after)) = rest.split_first() {
        let (length, after) = after.split_first_chunk().unwrap();
        let (payload, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        rest = after;
        let mut payload = payload.to_vec();
        if *kind == 3 {
            // Behind the number: layout, kind, mode, three numbers, accessed, three times, attributes.
            let record = payload.split_off(8);
            assert_eq!(record[0], 2);
            let is_file = record[1] == 1;
            payload.extend_from_slice(&[&[1], &record[1..16], &record[24..48], &record[50..58]].concat());
            payload.extend_from_slice(&record[if is_file { 66 } else { 58 }..]);
        }
        out.push(*kind);
        out.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        out.extend_from_slice(&payload);
    }
    let trailer = blake3::hash(&out);
    [&out[..], trailer.as_bytes()].concat()
}

#[tokio::test]
async fn a_file_of_the_program_before_is_still_imported() {
    let old = Running::in_memory().await;
    let below = old.make(ROOT, "folder").await;
    let holes = Manifest::new(vec![Extent::Hole { length: 9 }, Extent::whole(segment(1))]).unwrap();
    old.run(vec![publish(below, "sparse", &holes), publish(below, "empty", &Manifest::default())]).await;
    let file = in_the_old_layout(&export(&old).await.unwrap());
    let new = Running::in_memory().await;
    let imported = import(&new, &file, 1_000, Replace::Empty).await.unwrap();
    assert_eq!((imported.files, imported.directories, imported.manifests), (2, 2, 1));
    let view = new.catalog.view();
    let folder = view.image.entry(ROOT, b"folder").unwrap();
    let node = view.image.node(view.image.entry(folder, b"sparse").unwrap()).unwrap();
    let content = node.content().unwrap();
    assert_eq!((node.accessed_ns, content.size, content.allocated), (node.modified_ns, 4105, 4105));
    assert_eq!(content.manifest, Some(holes.digest()));
}

#[tokio::test]
async fn numbers_of_an_import_are_of_no_earlier_second() {
    let file = export(&filled().await).await.unwrap();
    let seconds = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let earliest = seconds() << 20;
    let new = Running::in_memory().await;
    import(&new, &file, 1_000, Replace::Empty).await.unwrap();
    let made = new.make(ROOT, "after it").await;
    let image = new.catalog.view().image.clone();
    let numbers = image.nodes().map(|(inode, _)| inode).filter(|inode| *inode != ROOT);
    for number in numbers.chain([made]) {
        assert!((earliest..=(seconds() + 1) << 20).contains(&number.0), "{number}");
    }
}

#[tokio::test]
async fn a_catalog_with_names_is_replaced_only_if_that_is_said() {
    let old = filled().await;
    let file = export(&old).await.unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let new = Running::on(store.clone()).await;
    let mine = new.make(ROOT, "mine").await;
    assert_eq!(import(&new, &file, 9_999, Replace::Empty).await.unwrap_err().fault, Fault::NotEmpty);
    assert!(new.catalog.view().image.node(mine).is_some());
    import(&new, &file, 9_999, Replace::Anything).await.unwrap();
    assert_eq!(paths(&new.catalog.view().image), paths(&old.catalog.view().image));
    assert!(new.catalog.view().image.node(mine).is_none(), "its number is not used again");
    assert_eq!(new.catalog.swarm_id(), old.catalog.swarm_id(), "no seeder has joined the swarm that is given up");
    import(&new, &file, 77, Replace::Anything).await.unwrap();
    assert_eq!(paths(&new.catalog.view().image), paths(&old.catalog.view().image));
    let image = new.catalog.view().image.clone();
    new.close().await;
    let new = Running::on(store).await;
    assert_eq!(new.catalog.view().image, image, "after a restart too");
    let inodes = usize::try_from(new.catalog.counts().inodes).unwrap();
    eventually("the trees that were replaced are swept", async || {
        let nodes = new.catalog.store().scan(Bytes::from_static(b"i"), Bytes::new(), usize::MAX).await.unwrap();
        nodes.entries.len() == inodes
    })
    .await;
}

#[tokio::test]
async fn an_empty_catalog_with_a_seeder_of_its_own_stays_the_swarm_that_it_is() {
    let old = filled().await;
    let file = export(&old).await.unwrap();
    let new = Running::in_memory().await;
    let swarm = new.catalog.swarm_id();
    let seeder = SeederRecord {
        host: String::new(),
        zone: String::new(),
        address: String::new(),
        capacity_bytes: 0,
        draining: false,
        last_seen_ns: 0,
    };
    new.catalog.put_seeder(PeerId::random(), seeder).await.unwrap();
    let refused = import(&new, &file, 60_000, Replace::Empty).await.unwrap_err();
    assert_eq!(refused.fault, Fault::OtherSwarm, "{refused}");
    // Also if it has joined so lately that it is not registered yet.
    let newer = Running::in_memory().await;
    let mut begun = newer.catalog.import(Replace::Empty).await.unwrap();
    begun.push(&file).await.unwrap();
    let refused = begun.finish(Replace::Empty, &[PeerId::random()]).await.unwrap_err();
    assert_eq!(refused.fault, Fault::OtherSwarm, "{refused}");
    assert_eq!(new.catalog.counts().inodes, 1);
    let imported = import(&new, &file, 60_000, Replace::Anything).await.unwrap();
    assert_eq!((imported.swarm, imported.of_file), (swarm, old.catalog.swarm_id()));
    assert_eq!(new.catalog.swarm_id(), swarm);
    assert_eq!(new.catalog.seeders().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_bad_file_is_refused_and_changes_nothing() {
    let file = export(&filled().await).await.unwrap();
    let new = Running::in_memory().await;
    let mut bad: Vec<(String, Vec<u8>)> = vec![
        ("empty".into(), Vec::new()),
        ("foreign".into(), b"#!/bin/sh\nrm -rf /\n".to_vec()),
        ("newer".into(), [&file[..8], &[9], &file[9..]].concat()),
        ("longer".into(), [&file[..], b"x"].concat()),
        ("twice".into(), [&file[..], &file[..]].concat()),
    ];
    for cut in [1, 11, 12, 50, 100, file.len() / 2, file.len() - 33, file.len() - 32, file.len() - 1] {
        bad.push((format!("cut at {cut}"), file[..cut].to_vec()));
    }
    for at in (0..file.len()).step_by(file.len() / 60) {
        let mut flipped = file.to_vec();
        flipped[at] ^= 4;
        bad.push((format!("flipped at {at}"), flipped));
    }
    for (what, bytes) in bad {
        let refused = import(&new, &bytes, 4_096, Replace::Empty).await;
        assert_eq!(refused.err().map(|refusal| refusal.fault), Some(Fault::Invalid), "{what}");
        assert_eq!(new.catalog.counts().inodes, 1, "{what}");
    }
    import(&new, &file, 4_096, Replace::Empty).await.unwrap();
}

/// A file that is right in form, with these items.
fn forged(items: &[Item]) -> Bytes {
    let header = format::Header {
        swarm: swarm_proto::SwarmId::random(),
        settings: Settings::default(),
        revision: swarm_proto::Revision(1),
        at_ns: 0,
    };
    let mut out = BytesMut::new();
    let mut writer = ItemWriter::begin(&header, &mut out);
    items.iter().for_each(|item| writer.push(item, &mut out));
    writer.end(&mut out);
    out.freeze()
}

#[tokio::test]
async fn names_that_do_not_fit_together_are_refused() {
    let source = Running::in_memory().await;
    let made = source.make(ROOT, "d").await;
    source.run(vec![publish(made, "f", &manifest(1, 2))]).await;
    let (mut items, image) = (Vec::new(), source.catalog.view().image.clone());
    let mut inodes: Vec<_> = image.nodes().map(|(inode, node)| (inode, node.clone())).collect();
    inodes.sort_by_key(|(inode, _)| *inode);
    items.extend(inodes.iter().map(|(inode, node)| Item::Node(*inode, node.clone())));
    for (inode, _) in &inodes {
        items.extend(image.list(*inode, None).map(|(name, below)| Item::Entry(*inode, name.clone(), below)));
    }
    let data = manifest(1, 2).encode();
    items.push(Item::Manifest { digest: manifest(1, 2).digest(), last: true, data: data.clone() });
    let target = Running::in_memory().await;
    let refused = async |items: &[Item]| {
        let done = import(&target, &forged(items), 100, Replace::Empty).await;
        assert_eq!(target.catalog.counts().inodes == 1, done.is_err());
        done.err().map(|refusal| refusal.fault)
    };
    for left_out in 0..items.len() {
        let mut some = items.clone();
        let item = some.remove(left_out);
        assert_eq!(refused(&some).await, Some(Fault::Invalid), "without {item:?}");
    }
    for twice in 0..items.len() - 1 {
        let mut some = items.clone();
        some.insert(twice, some[twice].clone());
        assert_eq!(refused(&some).await, Some(Fault::Invalid), "twice {:?}", items[twice]);
    }
    let name = Name::new(b"loop").unwrap();
    let looped = [&items[..], &[Item::Entry(made, name, made)]].concat();
    assert_eq!(refused(&looped).await, Some(Fault::Invalid));
    let nameless = items.iter().filter(|item| !matches!(item, Item::Entry(_, name, _) if name.as_bytes() == b"f"));
    let nameless = nameless.cloned().map(|item| match item {
        Item::Node(inode, node) if node.content().is_some() => {
            Item::Node(inode, crate::namespace::Node { links: 0, ..node })
        }
        item => item,
    });
    assert_eq!(refused(&nameless.collect::<Vec<_>>()).await, Some(Fault::Invalid), "a file without a name");
    let mut wrong = items.clone();
    *wrong.last_mut().unwrap() =
        Item::Manifest { digest: manifest(1, 2).digest(), last: true, data: manifest(1, 3).encode() };
    assert_eq!(refused(&wrong).await, Some(Fault::Invalid));
    let mut open = items.clone();
    *open.last_mut().unwrap() = Item::Manifest { digest: manifest(1, 2).digest(), last: false, data };
    assert_eq!(refused(&open).await, Some(Fault::Invalid));
    assert_eq!(refused(&items).await, None);
}

#[tokio::test]
async fn an_export_is_one_moment_while_names_change() {
    let running = Arc::new(filled().await);
    let writing = {
        let running = running.clone();
        async move {
            for n in 0..300 {
                // Two names that are only ever there together.
                running.run(vec![directory(ROOT, &format!("{n} a")), directory(ROOT, &format!("{n} b"))]).await;
            }
        }
    };
    let exporting = async {
        for _ in 0..5 {
            let file = export(&running).await.unwrap();
            let copy = Running::in_memory().await;
            import(&copy, &file, 50_000, Replace::Empty).await.unwrap();
            let view = copy.catalog.view();
            for n in 0..300 {
                let there = |half| view.image.entry(ROOT, format!("{n} {half}").as_bytes()).is_some();
                assert_eq!(there('a'), there('b'));
            }
        }
    };
    tokio::join!(writing, exporting);
}

#[tokio::test]
async fn an_import_that_was_given_up_leaves_nothing_and_the_next_one_is_clean() {
    let file = export(&filled().await).await.unwrap();
    let new = Running::in_memory().await;
    let mut given_up = new.catalog.import(Replace::Empty).await.unwrap();
    given_up.push(&file[..file.len() / 2]).await.unwrap();
    let busy = new.catalog.import(Replace::Empty).await.err().unwrap();
    assert_eq!(busy.fault, Fault::Stale, "one at a time");
    drop(given_up);
    import(&new, &file, 10_000, Replace::Empty).await.unwrap();
    let stored = rebuilt(&new.catalog).await;
    assert_eq!(new.catalog.view().image, stored);
}

#[tokio::test]
async fn an_export_that_nobody_reads_ends() {
    tokio::time::pause();
    let running = filled().await;
    all_reclaimed(&running).await;
    let parts = running.catalog.export().await;
    eventually("the guard against sweeps is given back", async || {
        tokio::time::advance(Duration::from_secs(31)).await;
        running.catalog.manifests().sweep(running.catalog.state(), Duration::ZERO).await.is_ok_and(|swept| swept == 1)
    })
    .await;
    drop(parts);
}

proptest! {
    #[test]
    fn no_bytes_panic(noise: Vec<u8>, at: prop::sample::Index, byte: u8, piece in 1usize..50) {
        let name = Name::new(b"x").unwrap();
        let mut good = forged(&[Item::Entry(ROOT, name, ROOT)]).to_vec();
        let at = at.index(good.len());
        good[at] = byte;
        for bytes in [&noise, &good, &[&b"SWARMCAT\x01\0\0\0"[..], &noise].concat()] {
            let mut reader = ItemReader::default();
            for piece in bytes.chunks(piece) {
                reader.push(piece);
                while let Ok(Some(_)) = reader.next_item() {}
            }
            let _ = reader.finish();
        }
    }
}
