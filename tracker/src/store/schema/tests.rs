//! Keys and records: what is written is read, and nothing else is believed.

use bytes::BufMut;
use proptest::prelude::*;
use swarm_proto::Fault;

use super::*;
use crate::namespace::{Body, Content, Device, DeviceKind, Extended, ExtendedName, Refusal};

fn node() -> impl Strategy<Value = Node> {
    let body = prop_oneof![
        (1u64.., any::<u64>(), any::<u64>(), any::<[u8; 32]>()).prop_map(|(size, holes, version, digest)| {
            let allocated = size.saturating_sub(holes);
            Body::File(Content { size, allocated, version, manifest: Some(ManifestDigest::new(digest)) })
        }),
        any::<u64>().prop_map(|version| Body::File(Content { version, ..Content::default() })),
        any::<u64>().prop_map(|parent| Body::Directory { parent: InodeNumber(parent) }),
        prop::collection::vec(1u8.., 1..300).prop_map(|target| Body::Symlink { target: target.into() }),
        Just(Body::Fifo),
        Just(Body::Socket),
        (any::<bool>(), any::<u64>()).prop_map(|(is_block, number)| {
            let kind = if is_block { DeviceKind::Block } else { DeviceKind::Character };
            Body::Device(Device { kind, number })
        }),
    ];
    let numbers = (0u16..=0o7777, any::<[u32; 3]>(), any::<[i64; 4]>());
    (numbers, extended(), body).prop_map(|((mode, [uid, gid, links], times), extended, body)| {
        let [accessed_ns, modified_ns, changed_ns, created_ns] = times;
        let extended = match body {
            Body::File(_) | Body::Directory { .. } => extended,
            _ => Extended::default(),
        };
        Node { mode, uid, gid, links, accessed_ns, modified_ns, changed_ns, created_ns, extended, body }
    })
}

fn extended() -> impl Strategy<Value = Extended> {
    let attribute = (prop::collection::vec(1u8.., 1..20), prop::collection::vec(any::<u8>(), 0..50));
    prop::collection::vec(attribute, 0..5).prop_map(|attributes| {
        let mut extended = Extended::default();
        for (name, value) in attributes {
            extended.set(&ExtendedName::new(&[b"user.", &name[..]].concat()).unwrap(), &value).unwrap();
        }
        extended
    })
}

/// What the program before this one wrote: without what it did not know.
fn old_record(node: &Node) -> Bytes {
    let mut out = vec![1];
    out.push(match node.body {
        Body::File(_) => 1,
        Body::Directory { .. } => 2,
        Body::Symlink { .. } => 3,
        Body::Fifo => 4,
        Body::Socket | Body::Device(_) => 5,
    });
    out.put_u16_le(node.mode);
    [node.uid, node.gid, node.links].into_iter().for_each(|number| out.put_u32_le(number));
    [node.modified_ns, node.changed_ns, node.created_ns].into_iter().for_each(|time| out.put_i64_le(time));
    match &node.body {
        Body::File(content) => {
            out.put_u64_le(content.size);
            out.put_u64_le(content.version);
            out.extend_from_slice(content.manifest.as_ref().map_or(&[][..], |digest| digest.as_bytes()));
        }
        Body::Directory { parent } => out.put_u64_le(parent.0),
        Body::Symlink { target } => out.extend_from_slice(target),
        Body::Fifo | Body::Socket | Body::Device(_) => {}
    }
    out.into()
}

/// What is read of it: never accessed since it was modified, without holes and attributes.
fn as_read(node: &Node) -> Node {
    let body = match &node.body {
        Body::File(content) => Body::File(Content { allocated: content.size, ..*content }),
        Body::Device(_) => Body::Socket,
        other => other.clone(),
    };
    Node { accessed_ns: node.modified_ns, extended: Extended::default(), body, ..node.clone() }
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

fn record() -> impl Strategy<Value = (Key, Record)> {
    let tree = any::<u32>().prop_map(TreeNumber);
    let inode = any::<u64>().prop_map(InodeNumber);
    let request = any::<[u8; 16]>().prop_map(RequestId::new);
    let head = (any::<u64>(), bytes(), any::<Option<u64>>()).prop_map(|(file_bytes, here, body)| ManifestHead {
        file_bytes,
        length: u32::try_from(here.len()).unwrap(),
        body: body.map_or(ManifestBody::Here(here), |body| ManifestBody::Pages(BodyNumber(body))),
    });
    let answer =
        prop_oneof![bytes().prop_map(Answer::Here), any::<u32>().prop_map(Answer::Pages), Just(Answer::Expired)];
    let name = prop::collection::vec(any::<u8>(), 1..=255)
        .prop_filter("a good name", |name| crate::namespace::Name::new(name).is_ok());
    prop_oneof![
        (any::<[u8; 16]>(), tree.clone())
            .prop_map(|(id, tree)| { (Key::Swarm, Record::Swarm(Swarm { id: SwarmId::new(id), tree })) }),
        any::<u64>().prop_map(|next| (Key::Numbers, Record::Numbers(next))),
        any::<(u32, u32)>().prop_map(|(replicas, min_replicas)| {
            (Key::Settings, Record::Settings(Settings { replicas, min_replicas }))
        }),
        (tree.clone(), inode.clone(), node())
            .prop_map(|(tree, inode, node)| { (Key::Node(tree, inode), Record::Node(node)) }),
        (tree.clone(), inode.clone(), name, inode).prop_map(|(tree, directory, name, inode)| {
            (Key::Entry(tree, directory, name.into()), Record::Entry(inode))
        }),
        (any::<[u8; 32]>(), head)
            .prop_map(|(digest, head)| { (Key::Manifest(ManifestDigest::new(digest)), Record::Manifest(head)) }),
        (any::<u64>(), any::<u32>(), bytes())
            .prop_map(|(body, page, bytes)| { (Key::ManifestPage(BodyNumber(body), page), Record::Page(bytes)) }),
        any::<u64>().prop_map(|body| (Key::Upload(BodyNumber(body)), Record::Mark)),
        tree.prop_map(|tree| (Key::Import(tree), Record::Mark)),
        (request.clone(), any::<i64>(), any::<[u8; 32]>(), answer).prop_map(|(id, at_ns, operations, answer)| {
            (Key::Request(id), Record::Request(RequestRecord { at_ns, operations, answer }))
        }),
        (request, any::<u32>(), bytes())
            .prop_map(|(id, page, bytes)| (Key::RequestPage(id, page), Record::Page(bytes))),
        (any::<[u8; 16]>(), any::<(String, String, String)>(), any::<(u64, bool, i64)>()).prop_map(
            |(id, (host, zone, address), (capacity_bytes, draining, last_seen_ns))| {
                let seeder = SeederRecord { host, zone, address, capacity_bytes, draining, last_seen_ns };
                (Key::Seeder(PeerId::new(id)), Record::Seeder(seeder))
            }
        ),
    ]
}

proptest! {
    #[test]
    fn keys_and_records_and_back((key, record) in record()) {
        let encoded = key.encode();
        prop_assert_eq!(Key::decode(&encoded).unwrap(), key.clone());
        prop_assert_eq!(Record::decode(&key, &record.encode()).unwrap(), record);
    }

    #[test]
    fn no_bytes_panic((key, record) in record(), noise: Vec<u8>, at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
        let _ = Key::decode(&noise);
        let _ = Record::decode(&key, &noise.into());
        let mut bytes = record.encode().to_vec();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        let _ = Record::decode(&key, &bytes.into());
    }

    #[test]
    fn an_inode_of_the_program_before_is_still_read(node in node()) {
        let key = Key::Node(TreeNumber(1), InodeNumber(7));
        let old = old_record(&node);
        prop_assert_eq!(Record::decode(&key, &old).unwrap(), Record::Node(as_read(&node)));
        let kept = [&[1][..], &7u64.to_le_bytes(), &u32::try_from(old.len() - 1).unwrap().to_le_bytes(), &old[1..]].concat();
        prop_assert_eq!(answers::decode(&kept).unwrap(), [Ok(Some((InodeNumber(7), as_read(&node))))]);
    }

    #[test]
    fn numbers_in_keys_sort_as_numbers(a: (u32, u64), b: (u32, u64)) {
        let key = |(tree, inode)| Key::Node(TreeNumber(tree), InodeNumber(inode)).encode();
        prop_assert_eq!(a.cmp(&b), key(a).cmp(&key(b)));
    }

    #[test]
    fn answers_and_back(results in prop::collection::vec(prop_oneof![
        Just(Ok(None)),
        (any::<u64>(), node()).prop_map(|(inode, node)| Ok(Some((InodeNumber(inode), node)))),
        (1i32..15, any::<String>()).prop_map(|(fault, message)| Err(Refusal::new(Fault::try_from(fault).unwrap(), message))),
        (any::<u64>(), node()).prop_map(|(inode, node)| {
            Err(Refusal::new(Fault::Stale, "by now").with_node(InodeNumber(inode), node))
        }),
    ], 0..20), noise: Vec<u8>) {
        prop_assert_eq!(answers::decode(&answers::encode(&results)).unwrap(), results);
        let _ = answers::decode(&noise);
    }
}

#[test]
fn keys_of_different_kinds_begin_differently() {
    let id = [0; 16];
    let keys = [
        Key::Swarm,
        Key::Numbers,
        Key::Settings,
        Key::Node(TreeNumber(0), InodeNumber(0)),
        Key::Entry(TreeNumber(0), InodeNumber(0), "x".into()),
        Key::Manifest(ManifestDigest::new([0; 32])),
        Key::ManifestPage(BodyNumber(0), 0),
        Key::Upload(BodyNumber(0)),
        Key::Import(TreeNumber(0)),
        Key::Request(RequestId::new(id)),
        Key::RequestPage(RequestId::new(id), 0),
        Key::Seeder(PeerId::new(id)),
    ];
    let letters: std::collections::HashSet<u8> = keys.iter().map(|key| key.encode()[0]).collect();
    assert_eq!(letters.len(), keys.len());
    assert!(!letters.contains(&0), "0 is the engine's own");
}

#[test]
fn a_newer_layout_is_told_from_damage() {
    let newer = Bytes::from_static(&[2, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(Record::decode(&Key::Numbers, &newer), Err(SchemaError::Layout(2)));
}

#[test]
fn an_inode_of_a_newer_program_is_told_from_damage_and_odd_ones_are_refused() {
    let key = Key::Node(TreeNumber(1), InodeNumber(7));
    let node = Node {
        mode: 0o644,
        uid: 0,
        gid: 0,
        links: 1,
        accessed_ns: 1,
        modified_ns: 2,
        changed_ns: 3,
        created_ns: 4,
        extended: Extended::default(),
        body: Body::File(Content { size: 9, allocated: 9, version: 1, manifest: Some(ManifestDigest::new([1; 32])) }),
    };
    let good = Record::Node(node.clone()).encode();
    let damaged = |bytes: Vec<u8>| matches!(Record::decode(&key, &bytes.into()), Err(SchemaError::Malformed(_)));
    let mut newer = good.to_vec();
    newer[0] = 3;
    assert_eq!(Record::decode(&key, &newer.into()), Err(SchemaError::Layout(3)));
    let mut more_than_all = good.to_vec();
    let allocated_at = good.len() - 32 - 16;
    more_than_all[allocated_at] = 10;
    assert!(damaged(more_than_all));
    let name = |name: &str| ExtendedName::new(name.as_bytes()).unwrap();
    let mut extended = Extended::default();
    extended.set(&name("user.a"), b"1").unwrap();
    extended.set(&name("user.b"), b"2").unwrap();
    let with = Record::Node(Node { extended: extended.clone(), ..node.clone() }).encode().to_vec();
    let swapped: Vec<u8> = with
        .iter()
        .map(|byte| match byte {
            b'a' => b'b',
            b'b' => b'a',
            byte => *byte,
        })
        .collect();
    assert!(damaged(swapped), "attributes out of order");
    assert!(damaged(with.iter().map(|byte| if *byte == b'u' { b'U' } else { *byte }).collect()));
    let fifo = Record::Node(Node { extended, body: Body::Fifo, ..node }).encode();
    assert!(damaged(fifo.to_vec()), "a fifo has no attributes");
}
