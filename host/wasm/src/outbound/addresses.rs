//! Finds the addresses of a server, and says which of them a guest may reach.
//!
//! A name is resolved once per request, and the connection goes to one of the addresses that were checked: a name that changes its mind
//! in between gains nothing.

use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use async_trait::async_trait;

/// Addresses of one name that are looked at; further ones are ignored.
pub(crate) const ADDRESSES_MAX: usize = 16;

/// Finds the addresses of a name.
#[async_trait]
pub trait Resolver: Debug + Send + Sync + 'static {
    /// All addresses of `host`, with this port.
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// The resolver of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let found = tokio::net::lookup_host((host, port)).await?;
        Ok(found.take(ADDRESSES_MAX).collect())
    }
}

/// Who can be reached at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Everyone: the internet.
    Public,
    /// This machine or its neighbours: private, shared, loopback and link-local addresses.
    Private,
    /// No server: unspecified, multicast, reserved and documentation addresses.
    None,
}

/// Who can be reached at an address, whatever notation hides it.
pub(crate) fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(address) => reach_v4(address),
        IpAddr::V6(address) => reach_v6(address),
    }
}

fn reach_v4(address: Ipv4Addr) -> Reach {
    match address.octets() {
        [0, ..] | [224..=255, ..] => Reach::None,
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Reach::None,
        [10, ..] | [127, ..] | [172, 16..=31, ..] | [192, 168, ..] => Reach::Private,
        // Shared by a provider's customers, link-local, protocol assignments, benchmarks.
        [100, 64..=127, ..] | [169, 254, ..] | [192, 0, 0, _] | [198, 18..=19, ..] => {
            Reach::Private
        }
        _ => Reach::Public,
    }
}

fn reach_v6(address: Ipv6Addr) -> Reach {
    let [a, b, c, .., high, low] = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        reach_v4(Ipv4Addr::new(a, b, c, d))
    };
    if let Some(mapped) = address.to_ipv4_mapped() {
        return reach_v4(mapped);
    }
    match (a, b, c) {
        _ if address.is_loopback() => Reach::Private,
        // NAT64 and 6to4 carry an address of IPv4.
        (0x64, 0xff9b, 0) if address.segments()[3..6] == [0; 3] => embedded(high, low),
        (0x64, 0xff9b, 1) => Reach::Private,
        (0x2002, ..) => embedded(b, c),
        // Teredo hides one behind a mask; documentation.
        (0x2001, 0 | 0xdb8, _) | (0x3fff, 0..=0xfff, _) => Reach::None,
        // Unique local, link-local, and site-local as it once was.
        (0xfc00..=0xfdff | 0xfe80..=0xfeff, ..) => Reach::Private,
        (0x2000..=0x3fff, ..) => Reach::Public,
        _ => Reach::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str) -> Reach {
        reach(address.parse().unwrap())
    }

    #[test]
    fn addresses_of_this_machine_and_its_neighbours_are_private_in_every_notation() {
        let private = [
            "10.0.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "192.0.0.8",
            "198.18.0.1",
            "::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "::ffff:127.0.0.1",
            "::ffff:a9fe:a9fe",
            "64:ff9b::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::8.8.8.8",
            "2002:7f00:1::1",
            "2002:a00:1::",
        ];
        for address in private {
            assert_eq!(of(address), Reach::Private, "{address}");
        }
    }

    #[test]
    fn what_is_no_server_is_never_reached() {
        let none = [
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "203.0.113.9",
            "::",
            "::7f00:1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "100::1",
            "64:ff9b::0.0.0.0",
            "64:ff9b:0:1::8.8.8.8",
            "::ffff:0.0.0.0",
            "2002:e000:1::",
        ];
        for address in none {
            assert_eq!(of(address), Reach::None, "{address}");
        }
    }

    #[test]
    fn addresses_of_the_internet_are_public() {
        let public = [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
        ];
        for address in public {
            assert_eq!(of(address), Reach::Public, "{address}");
        }
    }
}
