//! Which addresses webhooks may reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, PoisonError, RwLock};

use crate::config::Network;

/// The networks that callers must not make this server speak to: its own machine, its neighbours,
/// the pages on which clouds tell a machine its secrets, and addresses that are no host's
/// (IANA's special-purpose registries, RFC 6890).
const CLOSED_V4: [(Ipv4Addr, u8); 14] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    // Shared address space (RFC 6598); Alibaba's metadata is 100.100.100.200.
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    // Link-local; 169.254.169.254 is the metadata of most clouds.
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    // Protocol assignments; Oracle's metadata is 192.0.0.192.
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

const CLOSED_V6: [(Ipv6Addr, u8); 10] = [
    (Ipv6Addr::UNSPECIFIED, 128),
    (Ipv6Addr::LOCALHOST, 128),
    // Translation for local use (RFC 8215).
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64),
    // Protocol assignments, Teredo among them, which holds a v4 address.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    // Unique local; Amazon's metadata is fd00:ec2::254.
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// Which addresses webhooks may reach: all of the public ones, and the private ones that the
/// configuration names (`[webhooks] allow`). Clones change together.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    allowed: Arc<RwLock<Vec<Network>>>,
}

impl Reach {
    /// Public addresses, and those in one of these networks.
    #[must_use]
    pub fn new(allowed: Vec<Network>) -> Self {
        Self {
            allowed: Arc::new(RwLock::new(allowed)),
        }
    }

    /// Allows these networks from now on, and no others. Connections that stand stay.
    pub fn allow(&self, allowed: Vec<Network>) {
        *self.allowed.write().unwrap_or_else(PoisonError::into_inner) = allowed;
    }

    /// Whether a connection to `address` may be made.
    #[must_use]
    pub fn permits(&self, address: IpAddr) -> bool {
        let address = plain(address);
        let allowed = self.allowed.read().unwrap_or_else(PoisonError::into_inner);
        allowed.iter().any(|network| holds(network, address)) || is_public(address)
    }
}

/// The v4 address that a v6 one stands for, where it does: a name could else lead anywhere by
/// another spelling.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let segments = v6.segments();
    let [.., a, b, c, d] = v6.octets();
    match segments {
        // Mapped, the old compatible form, and translated (RFC 6052).
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => {
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        // 6to4 (RFC 3056).
        [0x2002, high, low, ..] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        _ => address,
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !CLOSED_V4
            .iter()
            .any(|(network, prefix)| same_bits(&v4.octets(), &network.octets(), *prefix)),
        IpAddr::V6(v6) => !CLOSED_V6
            .iter()
            .any(|(network, prefix)| same_bits(&v6.octets(), &network.octets(), *prefix)),
    }
}

fn holds(network: &Network, address: IpAddr) -> bool {
    match (network.address, address) {
        (IpAddr::V4(network_v4), IpAddr::V4(v4)) => {
            same_bits(&v4.octets(), &network_v4.octets(), network.prefix)
        }
        (IpAddr::V6(network_v6), IpAddr::V6(v6)) => {
            same_bits(&v6.octets(), &network_v6.octets(), network.prefix)
        }
        _ => false,
    }
}

fn same_bits(one: &[u8], other: &[u8], prefix: u8) -> bool {
    let mut left = u32::from(prefix);
    one.iter().zip(other).all(|(one, other)| {
        let bits = left.min(8);
        left -= bits;
        let mask = u8::try_from(0xff00_u16 >> bits & 0xff).unwrap_or(0);
        one & mask == other & mask
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(reach: &Reach, address: &str) -> bool {
        reach.permits(address.parse().unwrap())
    }

    #[test]
    fn private_loopback_link_local_and_metadata_addresses_are_closed_however_they_are_written() {
        let reach = Reach::default();
        for closed in [
            "0.0.0.0",
            "10.1.2.3",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001:0:1::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!permits(&reach, closed), "{closed}");
        }
    }

    #[test]
    fn public_addresses_are_open() {
        let reach = Reach::default();
        for open in [
            "1.1.1.1",
            "100.128.0.1",
            "172.15.255.255",
            "172.32.0.1",
            "192.167.1.1",
            "198.20.0.1",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "2002:101:101::",
        ] {
            assert!(permits(&reach, open), "{open}");
        }
    }

    #[test]
    fn what_the_configuration_allows_is_open_and_nothing_beside_it() {
        let network = |address: &str, prefix| Network {
            address: address.parse().unwrap(),
            prefix,
        };
        let reach = Reach::new(vec![
            network("10.1.0.0", 16),
            network("127.0.0.1", 32),
            network("fd12::", 16),
        ]);
        for open in ["10.1.2.3", "127.0.0.1", "::ffff:10.1.0.1", "fd12:1::1"] {
            assert!(permits(&reach, open), "{open}");
        }
        for closed in ["10.2.0.1", "127.0.0.2", "fd13::1", "::1"] {
            assert!(!permits(&reach, closed), "{closed}");
        }
    }
}
