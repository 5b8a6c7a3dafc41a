//! The durable registry of seeders: whom a fresh leader waits for.

use swarm_proto::PeerId;

use super::load::corrupt;
use crate::store::schema::{Key, Record, SeederRecord, prefix};
use crate::store::{Store, StoreError, scan_all};

pub(super) async fn all(store: &dyn Store) -> Result<Vec<(PeerId, SeederRecord)>, StoreError> {
    let mut seeders = Vec::new();
    let each = |entry: crate::store::KeyValue| {
        let key = Key::decode(&entry.key).map_err(corrupt)?;
        if let (Key::Seeder(id), Record::Seeder(seeder)) =
            (&key, Record::decode(&key, &entry.versioned.value).map_err(corrupt)?)
        {
            seeders.push((*id, seeder));
        }
        Ok(())
    };
    scan_all(store, prefix::SEEDERS, each).await?;
    Ok(seeders)
}
