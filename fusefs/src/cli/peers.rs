//! `swarmfs peers`: who is in the swarm.

use clap::Args;
use serde::Serialize;
use swarm_proto::settings::ByteCount;
use swarm_proto::v1::{PeerKind, PeerState, PeerStatus};

use super::connect::{Tool, tracker_failure};
use super::exit::Outcome;
use super::name::{escape, hex};
use super::show::{Out, columns};

/// List the peers of the swarm.
#[derive(Debug, Args)]
pub struct Peers {
    /// As JSON: an array with one object for each peer
    #[arg(long)]
    json: bool,
}

/// One peer, as `peers --json` shows it; documented in docs/CLI.md.
#[derive(Debug, Serialize)]
struct Peer {
    id: String,
    kind: &'static str,
    state: &'static str,
    state_for_ms: u64,
    zone: String,
    host: String,
    address: String,
    bytes_capacity: u64,
    bytes_used: u64,
    bytes_free: u64,
    bytes_served: u64,
    segments: u64,
    corrupt_segments: u64,
    corrupt_reports: u64,
    in_flight: u32,
    version: String,
}

impl From<&PeerStatus> for Peer {
    fn from(status: &PeerStatus) -> Self {
        let info = status.info.clone().unwrap_or_default();
        Self {
            id: hex(&info.peer_id),
            kind: kind_name(info.kind()),
            state: state_name(info.state()),
            state_for_ms: status.state_for_ms,
            zone: info.zone,
            host: info.host,
            address: info.address,
            bytes_capacity: status.capacity_bytes,
            bytes_used: status.used_bytes,
            bytes_free: status.free_bytes,
            bytes_served: status.served_bytes_total,
            segments: status.segments,
            corrupt_segments: status.corrupt_segments,
            corrupt_reports: status.corrupt_reports_total,
            in_flight: status.in_flight,
            version: status.version.clone(),
        }
    }
}

pub(crate) fn kind_name(kind: PeerKind) -> &'static str {
    match kind {
        PeerKind::Seeder => "seeder",
        PeerKind::Mount => "mount",
        PeerKind::Unspecified => "unknown",
    }
}

pub(crate) fn state_name(state: PeerState) -> &'static str {
    match state {
        PeerState::Live => "live",
        PeerState::Stale => "stale",
        PeerState::Dead => "dead",
        PeerState::Draining => "draining",
        PeerState::Unspecified => "unknown",
    }
}

impl Peers {
    /// Run it.
    pub async fn run(self, tool: &Tool) -> Outcome {
        let connection = tool.connect()?;
        let peers = connection.tracker.peers().await.map_err(|error| tracker_failure("list peers", &error))?;
        let mut peers: Vec<Peer> = peers.iter().map(Peer::from).collect();
        peers.sort_by(|a, b| (b.kind, &a.host, &a.address, &a.id).cmp(&(a.kind, &b.host, &b.address, &b.id)));
        let mut out = Out::new();
        match self.json {
            true => out.json(&peers)?,
            false => text(&peers).iter().try_for_each(|line| out.line(line))?,
        }
        out.finish()
    }
}

fn text(peers: &[Peer]) -> Vec<String> {
    if peers.is_empty() {
        return vec!["no peers: start one with `swarm-seeder --tracker ADDRESS --data DIR`".to_owned()];
    }
    let head = ["KIND", "STATE", "ADDRESS", "HOST", "ZONE", "USED", "FREE", "SERVED", "SEGMENTS", "ID"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(peers.iter().map(|peer| {
        let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { escape(text.as_bytes()) };
        vec![
            peer.kind.to_owned(),
            peer.state.to_owned(),
            dash(&peer.address),
            dash(&peer.host),
            dash(&peer.zone),
            ByteCount(peer.bytes_used).to_string(),
            ByteCount(peer.bytes_free).to_string(),
            ByteCount(peer.bytes_served).to_string(),
            peer.segments.to_string(),
            peer.id.chars().take(8).collect(),
        ]
    }));
    columns(&rows, &[5, 6, 7, 8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_proto::v1::PeerInfo;

    #[test]
    fn json_has_the_documented_fields() {
        let status = PeerStatus {
            info: Some(PeerInfo {
                peer_id: vec![1; 16].into(),
                kind: PeerKind::Seeder.into(),
                address: "h:1".into(),
                zone: "z".into(),
                host: "h".into(),
                state: PeerState::Draining.into(),
            }),
            used_bytes: 3,
            free_bytes: 4,
            served_bytes_total: 5,
            ..PeerStatus::default()
        };
        let json = serde_json::to_value(Peer::from(&status)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "id": "01010101010101010101010101010101", "kind": "seeder", "state": "draining", "state_for_ms": 0,
                "zone": "z", "host": "h", "address": "h:1", "bytes_capacity": 0, "bytes_used": 3, "bytes_free": 4,
                "bytes_served": 5, "segments": 0, "corrupt_segments": 0, "corrupt_reports": 0, "in_flight": 0,
                "version": "",
            })
        );
        let documented = include_str!("../../../docs/CLI.md");
        for key in json.as_object().unwrap().keys() {
            assert!(documented.contains(&format!("`{key}`")), "docs/CLI.md lacks {key}");
        }
    }
}
