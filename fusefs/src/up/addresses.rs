//! The addresses of a swarm of `up`: the same ones after each start, as far as they are free.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::state::Memory;
use super::{FIRST_SEEDER_PORT, UpConfig, UpError, free_port};

/// Where the parts listen, and how others reach them.
#[derive(Debug, Clone)]
pub(super) struct Addresses {
    pub(super) tracker: SocketAddr,
    pub(super) seeders: Vec<SocketAddr>,
    /// Name or address for others.
    advertise: String,
    /// This machine's address in its network, if it has one.
    pub(super) lan: Option<IpAddr>,
}

impl Addresses {
    /// Choose ports, and remember them; what changes is told in `notes`.
    pub(super) fn choose(config: &UpConfig, memory: &mut Memory, notes: &mut Vec<String>) -> Result<Self, UpError> {
        let ip = config.listen;
        let free = |port| free_port(ip, port).map_err(|source| UpError::Listen { ip, source });
        let tracker = free(memory.tracker_port)?;
        if memory.tracker_port != 0 && tracker.port() != memory.tracker_port {
            notes.push(format!("port {} is taken: the tracker moved to {}", memory.tracker_port, tracker.port()));
        }
        memory.tracker_port = tracker.port();
        // One that ran before may hold the only copy of something.
        let count = config.seeders.max(memory.seeder_ports.len()).max(1);
        let mut seeders: Vec<SocketAddr> = Vec::with_capacity(count);
        for index in 0..count {
            let mut wanted = memory
                .seeder_ports
                .get(index)
                .copied()
                .unwrap_or_else(|| FIRST_SEEDER_PORT.saturating_add(u16::try_from(index).unwrap_or_default()));
            let taken = |port| seeders.iter().any(|seeder| seeder.port() == port) || port == tracker.port();
            if taken(wanted) {
                wanted = 0;
            }
            let mut address = free(wanted)?;
            while taken(address.port()) {
                address = free(0)?;
            }
            seeders.push(address);
        }
        memory.seeder_ports = seeders.iter().map(SocketAddr::port).collect();
        let lan = lan_address();
        let advertise = config.advertise.clone().unwrap_or_else(|| {
            let reached = if ip.is_unspecified() { lan.unwrap_or_else(|| loopback(ip)) } else { ip };
            in_brackets(reached)
        });
        Ok(Self { tracker, seeders, advertise, lan })
    }

    /// An address as others reach it.
    pub(super) fn outside(&self, port: u16) -> String {
        format!("{}:{port}", self.advertise)
    }

    /// An address as this machine reaches it.
    pub(super) fn local(&self, address: SocketAddr) -> SocketAddr {
        match address.ip().is_unspecified() {
            true => SocketAddr::new(loopback(address.ip()), address.port()),
            false => address,
        }
    }
}

fn loopback(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

fn in_brackets(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// The address from which this machine would talk to others. Nothing is sent: a datagram socket only
/// looks its route up.
fn lan_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // An address for documentation, which is nobody's.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified() && !ip.is_loopback()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::state::StateFolder;
    use swarm_proto::settings::ByteCount;

    fn config(listen: &str, seeders: usize) -> UpConfig {
        UpConfig {
            mount_at: None,
            state: StateFolder { path: "/nowhere".into() },
            listen: listen.parse().unwrap(),
            advertise: None,
            seeders,
            replicas: 2,
            capacity: ByteCount(0),
            allow_other: false,
        }
    }

    #[test]
    fn ports_stay_the_same_and_seeders_never_become_fewer() {
        let mut memory = Memory { tracker_port: 0, seeder_ports: vec![0, 0, 0], ..Memory::default() };
        let first = Addresses::choose(&config("127.0.0.1", 1), &mut memory, &mut Vec::new()).unwrap();
        assert_eq!(first.seeders.len(), 3);
        let mut again = memory.clone();
        let mut notes = Vec::new();
        let second = Addresses::choose(&config("127.0.0.1", 1), &mut again, &mut notes).unwrap();
        assert_eq!((second.tracker, second.seeders, again), (first.tracker, first.seeders, memory));
        assert!(notes.is_empty());
    }

    #[test]
    fn all_ports_differ() {
        let mut memory = Memory { tracker_port: 0, seeder_ports: vec![0; 8], ..Memory::default() };
        let addresses = Addresses::choose(&config("127.0.0.1", 8), &mut memory, &mut Vec::new()).unwrap();
        let mut ports: Vec<u16> = addresses.seeders.iter().map(SocketAddr::port).collect();
        ports.push(addresses.tracker.port());
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 9);
    }

    #[test]
    fn others_are_told_an_address_that_they_can_reach() {
        let mut memory = Memory { tracker_port: 0, ..Memory::default() };
        let addresses = Addresses::choose(&config("0.0.0.0", 1), &mut memory, &mut Vec::new()).unwrap();
        assert!(!addresses.outside(1).starts_with("0.0.0.0"));
        assert!(addresses.local(addresses.tracker).ip().is_loopback());
        let named = UpConfig { advertise: Some("box.example".to_owned()), ..config("0.0.0.0", 1) };
        let addresses = Addresses::choose(&named, &mut memory, &mut Vec::new()).unwrap();
        assert_eq!(addresses.outside(7), "box.example:7");
    }
}
