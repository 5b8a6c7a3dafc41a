//! Keys and records: what is written is read, and nothing else is believed.

use proptest::prelude::*;
use swarm_proto::Fault;

use super::*;
use crate::namespace::{Body, Content, Refusal};

fn node() -> impl Strategy<Value = Node> {
    let body = prop_oneof![
        (1u64.., any::<u64>(), any::<[u8; 32]>()).prop_map(|(size, version, digest)| {
            Body::File(Content { size, version, manifest: Some(ManifestDigest::new(digest)) })
        }),
        any::<u64>().prop_map(|version| Body::File(Content { size: 0, version, manifest: None })),
        any::<u64>().prop_map(|parent| Body::Directory { parent: InodeNumber(parent) }),
        prop::collection::vec(1u8.., 1..300).prop_map(|target| Body::Symlink { target: target.into() }),
        Just(Body::Fifo),
        Just(Body::Socket),
    ];
    let numbers = (0u16..=0o7777, any::<u32>(), any::<u32>(), any::<u32>(), any::<i64>(), any::<i64>(), any::<i64>());
    (numbers, body).prop_map(|((mode, uid, gid, links, modified_ns, changed_ns, created_ns), body)| Node {
        mode,
        uid,
        gid,
        links,
        modified_ns,
        changed_ns,
        created_ns,
        body,
    })
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
    fn numbers_in_keys_sort_as_numbers(a: (u32, u64), b: (u32, u64)) {
        let key = |(tree, inode)| Key::Node(TreeNumber(tree), InodeNumber(inode)).encode();
        prop_assert_eq!(a.cmp(&b), key(a).cmp(&key(b)));
    }

    #[test]
    fn answers_and_back(results in prop::collection::vec(prop_oneof![
        Just(Ok(None)),
        (any::<u64>(), node()).prop_map(|(inode, node)| Ok(Some((InodeNumber(inode), node)))),
        (1i32..15, any::<String>()).prop_map(|(fault, message)| Err(Refusal { fault: Fault::try_from(fault).unwrap(), message })),
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
