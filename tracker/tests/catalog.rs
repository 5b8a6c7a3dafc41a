//! The Catalog service over real gRPC.

#![cfg(test)]

mod support;

use bytes::Bytes;
use futures::stream;
use support::*;
use swarm_proto::manifest::PAGE_BYTES;
use swarm_proto::v1::catalog_client::CatalogClient;
use swarm_proto::v1::operation::Operation;
use swarm_proto::v1::{self, publish_file::Content};
use swarm_proto::{Extent, Fault, Manifest, PeerId, RequestId, Segment, fault};
use swarm_tracker::{Tracker, TrackerConfig};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};

const ROOT: u64 = 1;

type Client = CatalogClient<Channel>;

async fn client(tracker: &Tracker) -> Client {
    CatalogClient::new(channel(tracker).await).max_decoding_message_size(swarm_proto::MAX_MESSAGE_BYTES)
}

fn owner() -> Option<v1::Ownership> {
    Some(v1::Ownership { mode: 0o640, uid: 7, gid: 8, modified_ns: 9, inherit: false })
}

fn directory(parent: u64, name: &[u8]) -> Operation {
    let name = Bytes::copy_from_slice(name);
    Operation::MakeDirectory(v1::MakeDirectory { parent, name, ownership: owner() })
}

fn manifest(first: u32, count: u32) -> Manifest {
    let extent = |number| Extent::whole(Segment { id: segment(number), length: 100 });
    Manifest::new((first..first + count).map(extent).collect()).unwrap()
}

fn file(parent: u64, name: &[u8], manifest: &Manifest, content: Content) -> Operation {
    let segments: Vec<_> = manifest.segments().map(|segment| segment.id).collect();
    let acknowledged = swarm_proto::SegmentId::pack(&segments);
    Operation::PublishFile(v1::PublishFile {
        parent,
        name: Bytes::copy_from_slice(name),
        ownership: owner(),
        size: manifest.size(),
        content: Some(content),
        if_exists: v1::IfExists::Replace.into(),
        base_version: 0,
        acknowledged: vec![v1::Acknowledged { peer_id: PeerId::new([1; 16]).to_wire(), segment_ids: acknowledged }],
    })
}

fn inline(parent: u64, name: &[u8], manifest: &Manifest) -> Operation {
    file(parent, name, manifest, Content::Manifest(manifest.encode()))
}

async fn mutate(client: &mut Client, operations: Vec<Operation>) -> v1::MutateReply {
    let operations = operations.into_iter().map(|operation| v1::Operation { operation: Some(operation) }).collect();
    let request =
        v1::MutateRequest { request_id: RequestId::random().to_wire(), operations, durable: false, with_others: false };
    client.mutate(request).await.unwrap().into_inner()
}

async fn make(client: &mut Client, operation: Operation) -> v1::Node {
    let mut reply = mutate(client, vec![operation]).await;
    let result = reply.results.remove(0);
    assert_eq!(result.fault(), Fault::Unspecified, "{}", result.message);
    result.node.unwrap()
}

async fn list(client: &mut Client, request: v1::ReadDirRequest) -> Result<Vec<Vec<v1::Entry>>, Status> {
    let mut stream = client.read_dir(request).await?.into_inner();
    let mut pages = Vec::new();
    while let Some(page) = stream.message().await? {
        pages.push(page.entries);
    }
    Ok(pages)
}

fn read_dir(inode: u64, after: &[u8], limit: u32) -> v1::ReadDirRequest {
    v1::ReadDirRequest { inode, after: Bytes::copy_from_slice(after), min_revision: 0, limit }
}

fn fault_of<T: std::fmt::Debug>(reply: Result<T, Status>) -> Fault {
    fault::of_status(&reply.unwrap_err())
}

#[tokio::test]
async fn paths_names_and_numbers_lead_to_the_same_inode() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = client(&tracker).await;
    let top = make(&mut client, directory(ROOT, b"top")).await;
    let content = manifest(1, 3);
    let made = make(&mut client, inline(top.inode, b"odd\n\xff", &content)).await;
    assert_eq!((made.kind(), made.mode, made.uid, made.gid, made.links), (v1::NodeKind::File, 0o640, 7, 8, 1));
    assert_eq!((made.size, made.modified_ns), (300, 9));
    assert_eq!(made.manifest_digest, content.digest().to_wire());
    for path in [&b"/top/odd\n\xff"[..], b"top//odd\n\xff/"] {
        let request = v1::ResolveRequest { path: Bytes::copy_from_slice(path), min_revision: 0 };
        assert_eq!(client.resolve(request).await.unwrap().into_inner().node, Some(made.clone()));
    }
    let name = Bytes::from_static(b"odd\n\xff");
    let request = v1::LookupRequest { parent: top.inode, name, min_revision: 0 };
    assert_eq!(client.lookup(request).await.unwrap().into_inner().node, Some(made.clone()));
    let request = v1::GetNodeRequest { inode: made.inode, min_revision: 0, current: true, with_manifest: true };
    let reply = client.get_node(request).await.unwrap().into_inner();
    assert_eq!((reply.node, reply.manifest), (Some(made.clone()), content.encode()));
    for path in [&b""[..], b"/", b"///"] {
        let request = v1::ResolveRequest { path: Bytes::copy_from_slice(path), min_revision: 0 };
        assert_eq!(client.resolve(request).await.unwrap().into_inner().node.unwrap().inode, ROOT);
    }
    let resolve = async |path: &'static [u8]| {
        let request = v1::ResolveRequest { path: path.into(), min_revision: 0 };
        fault_of(client.clone().resolve(request).await)
    };
    assert_eq!(resolve(b"/top/none").await, Fault::NotFound);
    assert_eq!(resolve(b"/top/odd\n\xff/x").await, Fault::NotDirectory);
    assert_eq!(resolve(b"/top/../top").await, Fault::Invalid);
    let gone = v1::GetNodeRequest { inode: 999, min_revision: 0, current: false, with_manifest: false };
    assert_eq!(fault_of(client.get_node(gone).await), Fault::NotFound);
    let gone = v1::LookupRequest { parent: 999, name: "x".into(), min_revision: 0 };
    assert_eq!(fault_of(client.lookup(gone).await), Fault::Stale);
}

#[tokio::test]
async fn names_of_any_bytes_are_kept_and_bad_ones_refused_one_by_one() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = client(&tracker).await;
    let longest = [b'x'; 255];
    let too_long = [b'x'; 256];
    let names: [(&[u8], Fault); 12] = [
        (b"plain", Fault::Unspecified),
        (b"..", Fault::Invalid),
        (b".", Fault::Invalid),
        (b"", Fault::Invalid),
        (b"a/b", Fault::Invalid),
        (b"a\0b", Fault::Invalid),
        (b"\n", Fault::Unspecified),
        (b"\xff\xfe", Fault::Unspecified),
        (b" ... ", Fault::Unspecified),
        (b"-rf *", Fault::Unspecified),
        (&longest, Fault::Unspecified),
        (&too_long, Fault::NameTooLong),
    ];
    let reply = mutate(&mut client, names.iter().map(|(name, _)| directory(ROOT, name)).collect()).await;
    for ((name, want), result) in names.iter().zip(&reply.results) {
        assert_eq!(result.fault(), *want, "{}", name.escape_ascii());
        assert_eq!(result.node.is_some(), *want == Fault::Unspecified);
    }
    let mut good: Vec<&[u8]> =
        names.iter().filter(|(_, fault)| *fault == Fault::Unspecified).map(|(n, _)| *n).collect();
    good.sort_unstable();
    let pages = list(&mut client, read_dir(ROOT, b"", 0)).await.unwrap();
    assert_eq!(pages.concat().iter().map(|entry| &entry.name[..]).collect::<Vec<_>>(), good);
}

#[tokio::test]
async fn directories_are_listed_in_pages_in_order_and_from_anywhere() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = client(&tracker).await;
    let top = make(&mut client, directory(ROOT, b"top")).await.inode;
    let names: Vec<String> = (0..3000).map(|n| format!("{n:05}")).collect();
    for some in names.chunks(1000) {
        let made = mutate(&mut client, some.iter().map(|name| directory(top, name.as_bytes())).collect()).await;
        assert!(made.results.iter().all(|result| result.fault() == Fault::Unspecified));
    }
    let flat = |pages: &[Vec<v1::Entry>]| -> Vec<String> {
        pages.concat().iter().map(|entry| String::from_utf8(entry.name.to_vec()).unwrap()).collect()
    };
    let pages = list(&mut client, read_dir(top, b"", 0)).await.unwrap();
    assert_eq!(pages.len(), 3, "full pages, and no empty one at the end");
    assert_eq!(flat(&pages), names);
    assert!(pages.concat().iter().all(|entry| entry.node.as_ref().is_some_and(|node| node.links == 2)));
    let pages = list(&mut client, read_dir(top, b"00999", 1500)).await.unwrap();
    assert_eq!(flat(&pages), names[1000..2500]);
    let pages = list(&mut client, read_dir(top, b"02998x", 0)).await.unwrap();
    assert_eq!(flat(&pages), names[2999..]);
    let empty = make(&mut client, directory(ROOT, b"empty")).await.inode;
    assert_eq!(list(&mut client, read_dir(empty, b"", 0)).await.unwrap(), [Vec::new()], "its revision is said");
    assert_eq!(fault_of(list(&mut client, read_dir(999_999, b"", 0)).await), Fault::Stale);
    let file = make(&mut client, inline(ROOT, b"f", &manifest(1, 1))).await.inode;
    assert_eq!(fault_of(list(&mut client, read_dir(file, b"", 0)).await), Fault::NotDirectory);
}

fn pages(manifest: &Manifest) -> Vec<v1::ManifestPage> {
    let encoded = manifest.encode();
    let page = |(number, data): (usize, &[u8])| v1::ManifestPage {
        digest: if number == 0 { manifest.digest().to_wire() } else { Bytes::new() },
        data: Bytes::copy_from_slice(data),
    };
    encoded.chunks(PAGE_BYTES).enumerate().map(page).collect()
}

#[tokio::test]
async fn large_manifests_go_in_and_out_in_pages() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = client(&tracker).await;
    let (large, small) = (manifest(1, 12_000), manifest(5, 2));
    client.put_manifest(stream::iter(pages(&large))).await.unwrap();
    let named = Content::ManifestDigest(large.digest().to_wire());
    let node = make(&mut client, file(ROOT, b"large", &large, named)).await;
    make(&mut client, inline(ROOT, b"small", &small)).await;
    let request = v1::GetManifestRequest { digest: node.manifest_digest };
    let mut stream = client.get_manifest(request).await.unwrap().into_inner();
    let mut got = Vec::new();
    while let Some(page) = stream.message().await.unwrap() {
        got.push(page);
    }
    assert_eq!(got, pages(&large));
    let request = v1::GetNodeRequest { inode: node.inode, min_revision: 0, current: false, with_manifest: true };
    assert!(client.get_node(request).await.unwrap().into_inner().manifest.is_empty(), "it is too large for that");
    let unknown = manifest(77, 1).digest();
    let digests = swarm_proto::ManifestDigest::pack(&[small.digest(), unknown, large.digest(), small.digest()]);
    let reply = client.get_manifests(v1::GetManifestsRequest { digests }).await.unwrap().into_inner();
    assert_eq!(reply.manifests, [small.encode(), Bytes::new(), large.encode(), small.encode()]);
    let request = v1::GetManifestRequest { digest: unknown.to_wire() };
    assert_eq!(fault_of(client.get_manifest(request).await), Fault::NotFound);
}

#[tokio::test]
async fn files_are_leased_in_the_order_asked_with_their_manifests() {
    // A store that is this process's alone: others are not leased from.
    let folder = tempfile::tempdir().unwrap();
    let config = TrackerConfig { data: Some(folder.path().to_owned()), ..config() };
    let tracker = Tracker::start(config).await.unwrap();
    let mut client = client(&tracker).await;
    let small = manifest(5, 2);
    let file = make(&mut client, inline(ROOT, b"small", &small)).await;
    let folder = make(&mut client, directory(ROOT, b"folder")).await;
    let empty = make(&mut client, inline(ROOT, b"empty", &Manifest::default())).await;
    let inodes = vec![empty.inode, 99_999_999, file.inode, folder.inode];
    let reply = client.lease_nodes(v1::LeaseNodesRequest { inodes, min_revision: 0 }).await.unwrap().into_inner();
    let nodes: Vec<Option<u64>> = reply.nodes.iter().map(|leased| Some(leased.node.as_ref()?.inode)).collect();
    assert_eq!(nodes, [Some(empty.inode), None, Some(file.inode), Some(folder.inode)]);
    let manifests: Vec<&[u8]> = reply.nodes.iter().map(|leased| &leased.manifest[..]).collect();
    assert_eq!(manifests, [&b""[..], b"", &small.encode()[..], b""]);
    assert!(reply.lease_ms > 0 && reply.revision > 0);
    let none = client.lease_nodes(v1::LeaseNodesRequest { inodes: vec![], min_revision: 0 }).await.unwrap();
    assert!(none.into_inner().nodes.is_empty());
    let inodes = vec![1; 1025];
    let refused = client.lease_nodes(v1::LeaseNodesRequest { inodes, min_revision: 0 }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn uploads_that_are_odd_are_refused() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = client(&tracker).await;
    let good = pages(&manifest(1, 12_000));
    let mut second_digest = good.clone();
    second_digest[1].digest = good[0].digest.clone();
    let mut no_digest = good.clone();
    no_digest[0].digest = Bytes::new();
    let mut short_digest = good.clone();
    short_digest[0].digest = Bytes::from_static(b"short");
    let mut too_large = good.clone();
    too_large[0].data = vec![0; PAGE_BYTES + 1].into();
    let mut swapped = good.clone();
    swapped[0].data = good[1].data.clone();
    for bad in [second_digest, no_digest, short_digest, too_large, swapped, good[..1].to_vec(), Vec::new()] {
        let refused = client.put_manifest(stream::iter(bad)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    let digests = Bytes::from(vec![0; 32 * 1025]);
    let refused = client.get_manifests(v1::GetManifestsRequest { digests }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_watch_says_at_once_that_it_runs_then_what_changes_and_when_it_lost_track() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = client(&tracker).await;
    let seen = make(&mut client, directory(ROOT, b"before")).await;
    let request = v1::GetNodeRequest { inode: seen.inode, min_revision: 0, current: true, with_manifest: false };
    let now = client.get_node(request).await.unwrap().into_inner().revision;
    let mut watch = client.watch(v1::WatchRequest { after_revision: now }).await.unwrap().into_inner();
    let first = timeout(SOON, watch.message()).await.unwrap().unwrap().unwrap();
    assert_eq!((first.revision, first.reset, first.changes.len()), (now, false, 0));
    let made = make(&mut client, inline(ROOT, b"f", &manifest(1, 1))).await;
    let next = timeout(SOON, watch.message()).await.unwrap().unwrap().unwrap();
    assert!(next.revision > now && !next.reset);
    let entry = v1::Change { inode: ROOT, name: "f".into(), content: false };
    let content = v1::Change { inode: made.inode, name: Bytes::new(), content: true };
    assert!(next.changes.contains(&entry) && next.changes.contains(&content), "{next:?}");
    for unknown in [u64::MAX, now + 1_000] {
        let mut watch = client.watch(v1::WatchRequest { after_revision: unknown }).await.unwrap().into_inner();
        let first = timeout(SOON, watch.message()).await.unwrap().unwrap().unwrap();
        assert!(first.reset && first.revision >= next.revision);
        make(&mut client, directory(ROOT, format!("after {unknown}").as_bytes())).await;
        assert!(!timeout(SOON, watch.message()).await.unwrap().unwrap().unwrap().changes.is_empty());
    }
}

#[tokio::test]
async fn nobody_is_answered_from_before_what_he_has_seen() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = client(&tracker).await;
    let made = mutate(&mut client, vec![directory(ROOT, b"d")]).await;
    let request = v1::LookupRequest { parent: ROOT, name: "d".into(), min_revision: made.revision };
    assert!(client.lookup(request.clone()).await.unwrap().into_inner().revision >= made.revision);
    let ahead = v1::LookupRequest { min_revision: u64::MAX, ..request };
    let refused = timeout(SOON, client.lookup(ahead)).await.unwrap().unwrap_err();
    assert_eq!(fault::of_status(&refused), Fault::Unavailable);
}

fn attribute(inode: u64, name: &[u8], value: Option<&[u8]>, mode: v1::ExtendedMode) -> Operation {
    let (name, value) = (Bytes::copy_from_slice(name), value.map(Bytes::copy_from_slice));
    Operation::SetExtended(v1::SetExtended { inode, name, value, mode: mode.into() })
}

#[tokio::test]
async fn times_attributes_devices_and_holes_are_told_as_they_were_set() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = client(&tracker).await;
    let holes = Manifest::new(vec![
        Extent::Hole { length: 1_000_000 },
        Extent::whole(Segment { id: segment(1), length: 100 }),
        Extent::Hole { length: 5 },
    ])
    .unwrap();
    let made = make(&mut client, inline(ROOT, b"f", &holes)).await;
    assert_eq!((made.size, made.allocated_bytes, made.accessed_ns), (1_000_105, 100, 9));
    client.put_manifest(stream::iter(pages(&manifest(1, 12_000)))).await.unwrap();
    let named = Content::ManifestDigest(manifest(1, 12_000).digest().to_wire());
    let large = make(&mut client, file(ROOT, b"large", &manifest(1, 12_000), named)).await;
    assert_eq!((large.size, large.allocated_bytes), (1_200_000, 1_200_000));
    let times = v1::SetAttributes { inode: made.inode, accessed_ns: Some(-4), ..v1::SetAttributes::default() };
    assert_eq!(make(&mut client, Operation::SetAttributes(times)).await.accessed_ns, -4);
    let set = v1::ExtendedMode::Set;
    make(&mut client, attribute(made.inode, b"user.b", Some(b""), set)).await;
    let with = make(&mut client, attribute(made.inode, b"user.a", Some(b"\0value"), set)).await;
    let shown: Vec<_> = with.extended.iter().map(|one| (&one.name[..], &one.value[..])).collect();
    assert_eq!(shown, [(&b"user.a"[..], &b"\0value"[..]), (b"user.b", b"")]);
    for (kind, device) in [(v1::NodeKind::CharacterDevice, 0x0103), (v1::NodeKind::BlockDevice, u64::MAX)] {
        let name = Bytes::from(device.to_string());
        let special = v1::MakeSpecial { parent: ROOT, name, ownership: owner(), kind: kind.into(), device };
        let made = make(&mut client, Operation::MakeSpecial(special)).await;
        assert_eq!((made.kind(), made.device), (kind, device));
    }
}

#[tokio::test]
async fn a_write_by_number_replaces_what_it_was_based_on_or_says_what_is_there() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = client(&tracker).await;
    let made = make(&mut client, inline(ROOT, b"f", &manifest(1, 1))).await;
    let Operation::PublishFile(file) = inline(ROOT, b"f", &manifest(5, 2)) else { unreachable!() };
    let write = v1::WriteFile {
        inode: made.inode,
        base_version: made.version,
        size: 200,
        content: Some(v1::write_file::Content::Manifest(manifest(5, 2).encode())),
        modified_ns: 60,
        changed_ns: i64::MAX,
        accessed_ns: Some(70),
        clear_set_id: true,
        acknowledged: file.acknowledged,
    };
    let written = make(&mut client, Operation::WriteFile(write.clone())).await;
    assert_eq!((written.size, written.modified_ns, written.accessed_ns), (200, 60, 70));
    assert_eq!((written.changed_ns, written.mode), (i64::MAX, 0o640));
    let late = mutate(&mut client, vec![Operation::WriteFile(write.clone())]).await.results.remove(0);
    assert_eq!((late.fault(), late.node), (Fault::Stale, Some(written)));
    let root = v1::WriteFile { inode: ROOT, ..write };
    assert_eq!(mutate(&mut client, vec![Operation::WriteFile(root)]).await.results[0].fault(), Fault::IsDirectory);
}

#[tokio::test]
async fn an_unlinked_file_is_found_by_its_number_and_told_to_whoever_asked_for_all() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = client(&tracker).await;
    let made = make(&mut client, inline(ROOT, b"f", &manifest(1, 1))).await;
    let unlink = Operation::Unlink(v1::Unlink { parent: ROOT, name: "f".into() });
    let operations = vec![v1::Operation { operation: Some(unlink) }];
    let request_id = RequestId::random().to_wire();
    let request = v1::MutateRequest { request_id, operations, durable: false, with_others: true };
    let result = client.mutate(request).await.unwrap().into_inner().results.remove(0);
    let links: Vec<_> = result.others.iter().map(|node| (node.inode, node.links)).collect();
    assert_eq!((result.node, links), (None, vec![(ROOT, 2), (made.inode, 0)]));
    let request = v1::GetNodeRequest { inode: made.inode, min_revision: 0, current: true, with_manifest: true };
    let reply = client.get_node(request).await.unwrap().into_inner();
    assert_eq!((reply.node.unwrap().links, reply.manifest), (0, manifest(1, 1).encode()));
    let request = v1::LeaseNodesRequest { inodes: vec![made.inode], min_revision: 0 };
    assert_eq!(client.lease_nodes(request).await.unwrap().into_inner().nodes[0].node, None, "not to be opened again");
    assert_eq!(client.stat_fs(v1::StatFsRequest {}).await.unwrap().into_inner().inodes, 1);
}

#[tokio::test]
async fn replies_fit_a_message_however_large_the_attributes_are() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = client(&tracker).await;
    let value = vec![7; 8 * 1024 - 6];
    let mut inodes = Vec::new();
    for first in (0..600).step_by(100) {
        let names: Vec<String> = (first..first + 100).map(|n| format!("{n:03}")).collect();
        let made = mutate(&mut client, names.iter().map(|name| directory(ROOT, name.as_bytes())).collect()).await;
        let some: Vec<u64> = made.results.iter().map(|result| result.node.as_ref().unwrap().inode).collect();
        let set = |inode| attribute(inode, b"user.x", Some(&value), v1::ExtendedMode::Set);
        mutate(&mut client, some.iter().copied().map(set).collect()).await;
        inodes.extend(some);
    }
    let pages = list(&mut client, read_dir(ROOT, b"", 0)).await.unwrap();
    let listed: Vec<u64> = pages.concat().iter().map(|entry| entry.node.as_ref().unwrap().inode).collect();
    assert!(pages.len() > 3 && listed == inodes, "{} pages of {} entries", pages.len(), listed.len());
    assert_eq!(list(&mut client, read_dir(ROOT, b"", 250)).await.unwrap().concat().len(), 250);
    let all = v1::LeaseNodesRequest { inodes: inodes.clone(), min_revision: 0 };
    assert_eq!(client.lease_nodes(all).await.unwrap_err().code(), Code::ResourceExhausted);
    let touch = |inode: &u64| {
        Operation::SetAttributes(v1::SetAttributes { inode: *inode, mode: Some(0o700), ..Default::default() })
    };
    let touched = mutate(&mut client, inodes.iter().map(touch).collect()).await;
    assert!(touched.results.iter().all(|result| result.fault() == Fault::Unspecified));
    assert!(touched.results[0].node.is_some() && touched.results[599].node.is_none(), "what does not fit is left out");
}

#[tokio::test]
async fn operations_that_cannot_be_read_are_refused_one_by_one() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = client(&tracker).await;
    let made = make(&mut client, directory(ROOT, b"d")).await.inode;
    let set = |mode| Operation::SetAttributes(v1::SetAttributes { inode: made, mode, ..v1::SetAttributes::default() });
    let special_of = |kind, device| {
        Operation::MakeSpecial(v1::MakeSpecial { parent: ROOT, name: "s".into(), ownership: owner(), kind, device })
    };
    let special = |kind| special_of(kind, 0);
    let set_attribute = |name: &[u8]| attribute(made, name, Some(b"v"), v1::ExtendedMode::Set);
    let publish = |change: fn(&mut v1::PublishFile)| {
        let Operation::PublishFile(mut file) = inline(ROOT, b"f", &manifest(1, 1)) else { unreachable!() };
        change(&mut file);
        Operation::PublishFile(file)
    };
    let rename = v1::Rename { parent: ROOT, name: "d".into(), new_parent: ROOT, new_name: "e".into(), mode: 9 };
    let bad = vec![
        set(Some(0o10000)),
        set(Some(u32::MAX)),
        special(v1::NodeKind::File.into()),
        special(99),
        special(0),
        special_of(v1::NodeKind::Fifo.into(), 1),
        special_of(v1::NodeKind::Socket.into(), u64::MAX),
        set_attribute(b""),
        set_attribute(b"user."),
        set_attribute(b"trusted.x"),
        set_attribute(b"user.a\0"),
        set_attribute(&[&b"user."[..], &[b'x'; 251]].concat()),
        Operation::SetExtended(v1::SetExtended { inode: made, name: "user.x".into(), value: None, mode: 7 }),
        Operation::WriteFile(v1::WriteFile {
            inode: made,
            content: Some(v1::write_file::Content::ManifestDigest(Bytes::from_static(b"short"))),
            ..v1::WriteFile::default()
        }),
        Operation::MakeDirectory(v1::MakeDirectory { parent: ROOT, name: "x".into(), ownership: None }),
        publish(|file| file.if_exists = 7),
        publish(|file| file.content = None),
        publish(|file| file.size = u64::MAX),
        publish(|file| file.content = Some(Content::ManifestDigest(Bytes::from_static(b"short")))),
        publish(|file| file.content = Some(Content::Manifest(Bytes::from(vec![0; 70_000])))),
        publish(|file| file.acknowledged[0].peer_id = Bytes::new()),
        publish(|file| file.acknowledged[0].segment_ids = Bytes::from_static(b"ragged")),
        Operation::Rename(rename),
    ];
    let count = bad.len();
    let reply = mutate(&mut client, bad).await;
    assert_eq!(reply.results.iter().filter(|result| result.fault() == Fault::Invalid).count(), count, "{reply:?}");
    let nothing = v1::MutateRequest {
        request_id: RequestId::random().to_wire(),
        operations: vec![v1::Operation { operation: None }],
        durable: false,
        with_others: false,
    };
    let reply = client.mutate(nothing).await.unwrap().into_inner();
    assert_eq!(reply.results[0].fault(), Fault::Invalid);
    let some = |count| (0..count).map(|_| v1::Operation { operation: Some(directory(ROOT, b"x")) }).collect();
    let id = RequestId::random().to_wire();
    for (request_id, operations) in [(Bytes::new(), some(1)), (id.clone(), some(0)), (id, some(1025))] {
        let refused = client
            .mutate(v1::MutateRequest { request_id, operations, durable: true, with_others: false })
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let pages = list(&mut client, read_dir(ROOT, b"", 0)).await.unwrap();
    assert_eq!(pages.concat().len(), 1, "nothing was changed");
}

async fn export(client: &mut Client) -> Vec<v1::CatalogPart> {
    let mut stream = client.export(v1::ExportRequest {}).await.unwrap().into_inner();
    let mut parts = Vec::new();
    while let Some(part) = timeout(SOON, stream.message()).await.unwrap().unwrap() {
        parts.push(part);
    }
    parts
}

#[tokio::test]
async fn a_catalog_moves_from_one_tracker_to_another() {
    let (old, new) = (Tracker::start(config()).await.unwrap(), Tracker::start(config()).await.unwrap());
    let (mut old, mut new) = (client(&old).await, client(&new).await);
    let top = make(&mut old, directory(ROOT, b"top")).await.inode;
    let contents = manifest(1, 6);
    mutate(&mut old, (0..900u32).map(|n| inline(top, &n.to_le_bytes().map(|b| b | 64), &contents)).collect()).await;
    let parts = export(&mut old).await;
    let mut cut = parts.clone();
    cut.pop();
    cut.push(v1::CatalogPart { data: Bytes::from_static(b"x"), replace: false });
    for bad in [cut, vec![], vec![v1::CatalogPart { data: vec![0; PAGE_BYTES + 1].into(), replace: true }]] {
        let refused = new.import(stream::iter(bad)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    let reply = new.import(stream::iter(parts.clone())).await.unwrap().into_inner();
    let before = list(&mut old, read_dir(top, b"", 0)).await.unwrap().concat();
    assert_eq!((reply.files, reply.directories, reply.manifests), (before.len() as u64, 2, 1));
    let request = v1::ResolveRequest { path: "/top".into(), min_revision: reply.revision };
    let top = new.resolve(request).await.unwrap().into_inner().node.unwrap().inode;
    let after = list(&mut new, read_dir(top, b"", 0)).await.unwrap().concat();
    let strip = |entries: &[v1::Entry]| -> Vec<v1::Entry> {
        let mut entries = entries.to_vec();
        for node in entries.iter_mut().filter_map(|entry| entry.node.as_mut()) {
            (node.inode, node.version) = (0, 0);
        }
        entries
    };
    assert_eq!(strip(&after), strip(&before));
    assert_eq!(fault_of(new.import(stream::iter(parts.clone())).await), Fault::NotEmpty);
    let mut replace = parts;
    replace[0].replace = true;
    new.import(stream::iter(replace)).await.unwrap();
}

/// A request that makes a directory.
fn making(id: RequestId, name: &[u8]) -> v1::MutateRequest {
    let operations = vec![v1::Operation { operation: Some(directory(ROOT, name)) }];
    v1::MutateRequest { request_id: id.to_wire(), operations, durable: false, with_others: false }
}

#[tokio::test]
async fn changes_of_a_stream_are_answered_each_for_itself_and_once() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = client(&tracker).await;
    let id = RequestId::random();
    let first = client.mutate(making(id, b"a")).await.unwrap().into_inner();
    let (requests, queue) = tokio::sync::mpsc::channel(16);
    let queue = stream::unfold(queue, |mut queue| async move { queue.recv().await.map(|request| (request, queue)) });
    let mut answers = client.mutate_stream(queue).await.unwrap().into_inner();
    let durable = v1::MutateRequest { durable: true, ..making(RequestId::random(), b"b") };
    let nameless = v1::MutateRequest { request_id: Bytes::from_static(b"short"), ..making(id, b"c") };
    let other = making(id, b"d");
    for request in [making(id, b"a"), other, durable.clone(), nameless] {
        requests.send(request).await.unwrap();
    }
    let mut said = Vec::new();
    for _ in 0..4 {
        let answer = answers.message().await.unwrap().unwrap();
        said.push((answer.request_id.clone(), answer.fault(), answer.reply));
    }
    assert!(said.contains(&(id.to_wire(), Fault::Unspecified, Some(first))), "its first answer again: {said:?}");
    assert!(said.contains(&(id.to_wire(), Fault::Invalid, None)), "one id for two requests: {said:?}");
    assert!(said.contains(&(Bytes::from_static(b"short"), Fault::Invalid, None)), "{said:?}");
    let made = said.iter().find(|(id, ..)| *id == durable.request_id).expect("it is answered");
    assert_eq!((made.1, made.2.as_ref().unwrap().results[0].fault()), (Fault::Unspecified, Fault::Unspecified));
    assert_eq!(list(&mut client, read_dir(ROOT, b"", 0)).await.unwrap().concat().len(), 2);
    // A stream does not keep a tracker that stops.
    tokio::time::timeout(std::time::Duration::from_secs(5), tracker.stop()).await.expect("it stops");
    assert!(matches!(answers.message().await, Ok(None) | Err(_)));
}

#[tokio::test]
async fn a_stream_of_changes_ends_when_another_catalog_is_imported() {
    let (old, new) = (Tracker::start(config()).await.unwrap(), Tracker::start(config()).await.unwrap());
    let (mut old, mut new) = (client(&old).await, client(&new).await);
    let (requests, queue) = tokio::sync::mpsc::channel(16);
    let queue = stream::unfold(queue, |mut queue| async move { queue.recv().await.map(|request| (request, queue)) });
    let mut answers = new.mutate_stream(queue).await.unwrap().into_inner();
    requests.send(making(RequestId::random(), b"a")).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().fault(), Fault::Unspecified);
    let mut parts = export(&mut old).await;
    parts[0].replace = true;
    new.import(stream::iter(parts)).await.unwrap();
    requests.send(making(RequestId::random(), b"b")).await.unwrap();
    let refused = answers.message().await.unwrap_err();
    assert_eq!(fault::of_status(&refused), Fault::OtherSwarm, "{refused}");
}

#[tokio::test]
async fn df_is_answered_with_no_seeder() {
    let tracker = Tracker::start(config()).await.unwrap();
    let mut client = client(&tracker).await;
    make(&mut client, directory(ROOT, b"d")).await;
    let reply = client.stat_fs(v1::StatFsRequest {}).await.unwrap().into_inner();
    assert_eq!((reply.capacity_bytes, reply.free_bytes, reply.inodes), (0, 0, 2));
}
