//! The soft half: who holds what, where to put what, and who is there.

use std::time::Duration;

use futures::future::BoxFuture;
use swarm_proto::v1::{self, HolderReport, ReportKind};
use swarm_proto::{PeerId, Segment, SegmentId, convert};
use tokio_util::sync::CancellationToken;

use super::{TrackerClient, TrackerError, holders_client};
use crate::swarm::{Holder, Locator, Offence, PeerAddress};

/// Most segments of one call.
const MOST_SEGMENTS: usize = 4_096;
/// Reports are gathered so long before they are sent.
const REPORTS_GATHER: Duration = Duration::from_millis(20);
/// Most reports of one call.
const MOST_REPORTS: usize = 256;

impl TrackerClient {
    /// Holders of each segment, best first, in the order asked; any number of segments.
    pub async fn locate(&self, ids: &[SegmentId]) -> Result<Vec<Vec<Holder>>, TrackerError> {
        let mut all = Vec::with_capacity(ids.len());
        for some in ids.chunks(MOST_SEGMENTS) {
            let request = v1::LocateRequest {
                segment_ids: SegmentId::pack(some),
                peer_id: self.me(),
                zone: self.shared.config.zone.clone(),
            };
            let reply =
                self.ask(request, |line, request| async move { holders_client(line).locate(request).await }).await?;
            let peers = self.addresses(&reply.peers)?;
            let lists = split(&reply.counts, &reply.holders, some.len()).ok_or_else(|| self.nonsense("holders"))?;
            for list in lists {
                let holders = list.iter().map(|packed| {
                    let peer = peers.get(*packed as usize / 2).ok_or_else(|| self.nonsense("a holder"))?;
                    Ok(Holder { peer: peer.clone(), partial: packed % 2 == 1 })
                });
                all.push(holders.collect::<Result<_, TrackerError>>()?);
            }
        }
        Ok(all)
    }

    /// Seeders that should take each segment, in the order asked; fewer than `replicas` if there are no
    /// more with room.
    pub async fn place(
        &self,
        segments: &[Segment],
        replicas: u32,
        exclude: &[PeerId],
    ) -> Result<Vec<Vec<PeerAddress>>, TrackerError> {
        let mut all = Vec::with_capacity(segments.len());
        for some in segments.chunks(MOST_SEGMENTS) {
            let request = v1::PlaceRequest {
                segment_ids: SegmentId::pack(some.iter().map(|segment| &segment.id)),
                lengths: some.iter().map(|segment| segment.length).collect(),
                replicas,
                exclude_peer_ids: PeerId::pack(exclude),
                zone: self.shared.config.zone.clone(),
            };
            let reply =
                self.ask(request, |line, request| async move { holders_client(line).place(request).await }).await?;
            let peers = self.addresses(&reply.peers)?;
            let lists = split(&reply.counts, &reply.targets, some.len()).ok_or_else(|| self.nonsense("targets"))?;
            for list in lists {
                let targets = list
                    .iter()
                    .map(|index| peers.get(*index as usize).cloned().ok_or_else(|| self.nonsense("a target")));
                all.push(targets.collect::<Result<_, TrackerError>>()?);
            }
        }
        Ok(all)
    }

    /// All registered peers.
    pub async fn peers(&self) -> Result<Vec<v1::PeerStatus>, TrackerError> {
        let reply = self
            .ask(v1::PeersRequest {}, |line, request| async move { holders_client(line).peers(request).await })
            .await?;
        Ok(reply.peers)
    }

    /// Health of the swarm, counted against `replicas`; 0: the swarm's own setting.
    pub async fn status(&self, replicas: u32) -> Result<v1::StatusReply, TrackerError> {
        self.ask_bulk(v1::StatusRequest { replicas }, |line, request| async move {
            holders_client(line).status(request).await
        })
        .await
    }

    /// Send the reports that [`Locator::report`] gathers, until `stop`. One such task runs for a client.
    pub async fn send_reports(&self, stop: CancellationToken) {
        let Some(mut gathered) = self.shared.reports_out.lock().take() else { return };
        let mut reports = Vec::new();
        loop {
            tokio::select! {
                count = gathered.recv_many(&mut reports, MOST_REPORTS) => if count == 0 { return },
                () = stop.cancelled() => return,
            }
            tokio::time::sleep(REPORTS_GATHER).await;
            while reports.len() < MOST_REPORTS {
                let Ok(report) = gathered.try_recv() else { break };
                reports.push(report);
            }
            let request = v1::ReportRequest { reporter_id: self.me(), reports: std::mem::take(&mut reports) };
            let sent = self.ask(request, |line, request| async move { holders_client(line).report(request).await });
            tokio::select! {
                sent = sent => if let Err(error) = sent { tracing::debug!(%error, "send reports of holders") },
                () = stop.cancelled() => return,
            }
        }
    }

    fn me(&self) -> bytes::Bytes {
        self.shared.config.me.map(|id| id.to_wire()).unwrap_or_default()
    }

    fn addresses(&self, peers: &[v1::PeerInfo]) -> Result<Vec<PeerAddress>, TrackerError> {
        peers.iter().map(|info| PeerAddress::try_from(info).map_err(|error| self.nonsense(error))).collect()
    }
}

impl TryFrom<&v1::PeerInfo> for PeerAddress {
    type Error = convert::ConvertError;
    fn try_from(info: &v1::PeerInfo) -> Result<Self, Self::Error> {
        Ok(Self {
            id: convert::peer_id("peer_id", &info.peer_id)?,
            address: info.address.clone(),
            zone: info.zone.clone(),
            host: info.host.clone(),
        })
    }
}

impl Locator for TrackerClient {
    fn locate(&self, ids: Vec<SegmentId>) -> BoxFuture<'_, Result<Vec<Vec<Holder>>, String>> {
        Box::pin(async move { self.locate(&ids).await.map_err(|error| error.to_string()) })
    }

    fn report(&self, peer: PeerId, offence: Offence) {
        let (segment_id, kind) = match offence {
            Offence::Missing(id) => (id.to_wire(), ReportKind::Missing),
            Offence::Corrupt(id) => (id.to_wire(), ReportKind::Corrupt),
            Offence::Unreachable => (bytes::Bytes::new(), ReportKind::Unreachable),
        };
        let report = HolderReport { peer_id: peer.to_wire(), segment_id, kind: kind.into() };
        // A full queue drops the report: locations are hints, and the next bad answer reports again.
        drop(self.shared.reports.try_send(report));
    }
}

/// Cut `flat` into `want` lists of the lengths `counts`; none if they do not fit.
fn split<'a>(counts: &'a [u32], flat: &'a [u32], want: usize) -> Option<Vec<&'a [u32]>> {
    if counts.len() != want {
        return None;
    }
    let mut rest = flat;
    let mut lists = Vec::with_capacity(want);
    for count in counts {
        let (list, after) = rest.split_at_checked(*count as usize)?;
        lists.push(list);
        rest = after;
    }
    rest.is_empty().then_some(lists)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn lists_that_do_not_fit_are_refused() {
        assert_eq!(split(&[1, 0, 2], &[7, 8, 9], 3), Some(vec![&[7][..], &[], &[8, 9]]));
        assert_eq!(split(&[1, 2], &[7, 8], 2), None);
        assert_eq!(split(&[1], &[7, 8], 1), None);
        assert_eq!(split(&[1], &[7], 2), None);
    }
}
