//! One connection to each seeder, and who of them is not to be used for now.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use swarm_proto::v1::chunks_client::ChunksClient;
use swarm_proto::{MAX_MESSAGE_BYTES, PeerId};
use tonic::transport::{Channel, Endpoint};

use super::store_call::Small;
use crate::session::Session;
use crate::swarm::PeerAddress;

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a seeder that failed is left alone, unless nobody else is left.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// How long a seeder that is full is left alone: it is to be written to soon after it has room.
const AFTER_FULL: Duration = Duration::from_secs(1);
/// How long its word counts that it is full, where nobody else has room.
const FULL_COUNTS: Duration = Duration::from_secs(60);

/// Why a seeder is not to be used for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It failed, or could not be reached.
    Failed,
    /// It could not write out what it took, or not in time: its word is worth nothing for now.
    Stuck,
    /// It has no room.
    Full,
}

impl Trouble {
    /// How long a seeder is left alone.
    fn rest(self) -> Duration {
        match self {
            Self::Failed | Self::Stuck => AFTER_FAILURE,
            Self::Full => AFTER_FULL,
        }
    }

    /// How long it is remembered, if the seeder is not asked again.
    fn counts(self) -> Duration {
        match self {
            Self::Failed | Self::Stuck => AFTER_FAILURE,
            Self::Full => FULL_COUNTS,
        }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Links {
    links: Mutex<HashMap<PeerId, Link>>,
    /// What was wrong, and when.
    troubles: Mutex<HashMap<PeerId, (Trouble, Instant)>>,
}

#[derive(Clone)]
struct Link {
    peer: PeerAddress,
    channel: Channel,
    small: Arc<Session<Small>>,
    /// One sync at a time; the next one finds that the first did its work.
    syncing: Arc<tokio::sync::Mutex<()>>,
}

impl Links {
    /// A client of this seeder; it connects when it is first used.
    ///
    /// Errors: in words, if the address is none.
    pub(super) fn client(&self, peer: &PeerAddress) -> Result<ChunksClient<Channel>, String> {
        Ok(self.line(peer)?.0)
    }

    /// A client of this seeder, and the stream to it for what is small.
    ///
    /// Errors: as [`Self::client`].
    pub(super) fn line(&self, peer: &PeerAddress) -> Result<(ChunksClient<Channel>, Arc<Session<Small>>), String> {
        let mut links = self.links.lock();
        let known = links.get(&peer.id).filter(|link| link.peer.address == peer.address);
        let link = match known {
            Some(link) => link.clone(),
            None => {
                let channel = connect(&peer.address)?;
                let (peer, small, syncing) = (peer.clone(), Arc::default(), Arc::default());
                let link = Link { peer: peer.clone(), channel, small, syncing };
                links.insert(peer.id, link.clone());
                link
            }
        };
        Ok((wrap(link.channel), link.small))
    }

    /// A client of a seeder that was used before, and the lock of its sync.
    pub(super) fn known(&self, peer: PeerId) -> Option<(ChunksClient<Channel>, Arc<tokio::sync::Mutex<()>>)> {
        let links = self.links.lock();
        links.get(&peer).map(|link| (wrap(link.channel.clone()), link.syncing.clone()))
    }

    /// Where a seeder that was used before is reached.
    pub(super) fn address(&self, peer: PeerId) -> Option<PeerAddress> {
        self.links.lock().get(&peer).map(|link| link.peer.clone())
    }

    /// Leave `peer` alone for a while.
    pub(super) fn avoid(&self, peer: PeerId, trouble: Trouble, now: Instant) {
        self.troubles.lock().insert(peer, (trouble, now));
    }

    /// Who is to be left alone now.
    pub(super) fn avoided(&self, now: Instant) -> Vec<PeerId> {
        let mut troubles = self.troubles.lock();
        let age = |at: Instant| now.saturating_duration_since(at);
        troubles.retain(|_, (trouble, at)| age(*at) < trouble.counts());
        let avoided = troubles.iter().filter(|(_, (trouble, at))| age(*at) < trouble.rest());
        let mut avoided: Vec<PeerId> = avoided.map(|(peer, _)| *peer).collect();
        avoided.sort_unstable();
        avoided
    }

    /// Who said that it is full.
    pub(super) fn full(&self, now: Instant) -> Vec<PeerId> {
        self.having(Trouble::Full, now)
    }

    /// Who could not write out what it took.
    pub(super) fn stuck(&self, now: Instant) -> Vec<PeerId> {
        self.having(Trouble::Stuck, now)
    }

    fn having(&self, wanted: Trouble, now: Instant) -> Vec<PeerId> {
        let troubles = self.troubles.lock();
        let has = |(trouble, at): &(Trouble, Instant)| {
            *trouble == wanted && now.saturating_duration_since(*at) < trouble.counts()
        };
        troubles.iter().filter(|(_, trouble)| has(trouble)).map(|(peer, _)| *peer).collect()
    }

    /// Nobody else is left: give those that failed another try. Whether there are any.
    pub(super) fn forgive_failures(&self) -> bool {
        let mut troubles = self.troubles.lock();
        let before = troubles.len();
        troubles.retain(|_, (trouble, _)| *trouble == Trouble::Full);
        before != troubles.len()
    }
}

fn wrap(channel: Channel) -> ChunksClient<Channel> {
    ChunksClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn connect(address: &str) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| format!("{address}: {error}"))?;
    Ok(endpoint
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(32 << 20)
        .max_frame_size(1 << 20)
        .connect_lazy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_seeder_is_asked_again_soon_and_counts_as_full_until_it_was() {
        let (links, peer, now) = (Links::default(), PeerId::new([1; 16]), Instant::now());
        links.avoid(peer, Trouble::Full, now);
        assert_eq!((links.avoided(now), links.full(now)), (vec![peer], vec![peer]));
        let soon = now + AFTER_FULL;
        assert_eq!((links.avoided(soon), links.full(soon)), (vec![], vec![peer]));
        links.avoid(peer, Trouble::Full, soon);
        assert_eq!(links.avoided(soon), [peer]);
        let late = soon + FULL_COUNTS;
        assert_eq!((links.avoided(late), links.full(late)), (vec![], vec![]));
    }

    #[test]
    fn a_failure_that_is_over_is_nothing_to_forgive() {
        let (links, now) = (Links::default(), Instant::now());
        links.avoid(PeerId::new([1; 16]), Trouble::Failed, now);
        assert_eq!(links.avoided(now + AFTER_FAILURE), []);
        assert!(!links.forgive_failures());
    }
}
