//! What the service does beside converting.

use super::*;
use crate::catalog::Capacity;
use crate::catalog::tests::wandering::Wandering;
use crate::catalog::tests::{ROOT, Running};
use swarm_proto::v1::catalog_server::Catalog as _;
use swarm_proto::{PeerId, RequestId};

struct NoCapacity;

impl CapacitySource for NoCapacity {
    fn capacity(&self) -> Capacity {
        Capacity::default()
    }

    fn joined(&self) -> Vec<PeerId> {
        Vec::new()
    }
}

fn make_directory(name: &'static str, durable: bool) -> Request<v1::MutateRequest> {
    let make = v1::MakeDirectory {
        parent: ROOT.0,
        name: name.into(),
        ownership: Some(v1::Ownership { mode: 0o755, ..v1::Ownership::default() }),
    };
    let operation = v1::Operation { operation: Some(v1::operation::Operation::MakeDirectory(make)) };
    let request_id = RequestId::random().to_wire();
    Request::new(v1::MutateRequest { request_id, operations: vec![operation], durable, with_others: false })
}

#[tokio::test]
async fn a_durable_change_is_answered_once_the_disk_has_it_and_the_others_do_not_wait() {
    let store = Arc::new(Wandering::default());
    let running = Running::on(store.clone()).await;
    let service = CatalogService::new(running.catalog.clone(), Arc::new(NoCapacity));
    service.mutate(make_directory("a", false)).await.unwrap();
    assert_eq!(store.syncs(), 0);
    service.mutate(make_directory("b", true)).await.unwrap();
    assert_eq!(store.syncs(), 1);
    store.fail_syncs();
    let refused = service.mutate(make_directory("c", true)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert!(running.catalog.view().image.entry(ROOT, b"c").is_some(), "as the error says");
    service.mutate(make_directory("d", false)).await.unwrap();
}
