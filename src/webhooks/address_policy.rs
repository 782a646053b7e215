//! Where deliveries may go. Clients choose the URLs, so the server must not be made to send requests to
//! addresses that only it can reach (SSRF). Deliveries go over https to public addresses, and to the networks
//! that the operator allows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::Url;

/// Longest URL of an endpoint.
const MAX_URL_BYTES: usize = 2048;

/// IPv4 networks that are not public, after IANA's registry of special-purpose addresses (2025), with
/// multicast, the reserved end of the range, and the one public address at which a cloud (Azure) serves
/// its machines.
const NON_PUBLIC_V4: &[Ipv4Net] = &[
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(168, 63, 129, 16), 32),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 0, 0), 24),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 88, 99, 0), 24),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 15),
    Ipv4Net::new_assert(Ipv4Addr::new(198, 51, 100, 0), 24),
    Ipv4Net::new_assert(Ipv4Addr::new(203, 0, 113, 0), 24),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// The only IPv6 network of which public addresses are given out. Loopback, link-local, unique-local and
/// multicast addresses lie outside of it, and so does what stands for an IPv4 address (`::ffff:…`,
/// `64:ff9b::…`).
const PUBLIC_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// What is not public within [`PUBLIC_V6`]: protocol assignments with Teredo, documentation, 6to4.
const NON_PUBLIC_V6: &[Ipv6Net] = &[
    Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    Ipv6Net::new_assert(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    Ipv6Net::new_assert(Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// The scheme of an endpoint's URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UrlScheme {
    /// Encrypted: for public addresses and those that the operator allows.
    Https,
    /// Not encrypted: only for addresses that the operator allows.
    Http,
}

/// Which addresses deliveries may go to.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    allowed: Vec<IpNet>,
}

/// The checked URL of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryTarget {
    /// The URL.
    pub url: Url,
    /// Its scheme.
    pub scheme: UrlScheme,
    /// The host, if it is a name that has to be looked up. An address has been checked already.
    pub name: Option<String>,
}

/// Why nothing is delivered to a URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It is no URL.
    #[error("the address is not a valid URL ({0}); write it as https://host/path")]
    Malformed(String),
    /// It is too long.
    #[error("the address has more than {MAX_URL_BYTES} bytes")]
    TooLong,
    /// It has another scheme.
    #[error("the address begins with {0:?}; webhooks go to https addresses")]
    UnknownScheme(String),
    /// It contains a user name or password.
    #[error(
        "the address holds a user name or password; deliveries are signed, and the signature shows \
         who sends them"
    )]
    Credentials,
    /// It is http, and the operator does not allow the host.
    #[error(
        "plain http is only for addresses that the server's --webhook-allow names, and the host is \
         none of them; write https"
    )]
    Plain,
    /// The host is not public, and the operator does not allow it.
    #[error(
        "the host is not at a public address; the server's operator can allow its network with \
         --webhook-allow"
    )]
    NotPublic,
}

impl Policy {
    /// A policy that allows these networks, and public addresses.
    pub fn new(allowed: Vec<IpNet>) -> Self {
        Self { allowed }
    }

    /// Parses the URL of an endpoint and checks it as far as possible without a DNS lookup.
    pub fn check_url(&self, text: &str) -> Result<DeliveryTarget, TargetError> {
        if text.len() > MAX_URL_BYTES {
            return Err(TargetError::TooLong);
        }
        let url = Url::parse(text).map_err(|error| TargetError::Malformed(error.to_string()))?;
        let scheme = match url.scheme() {
            "https" => UrlScheme::Https,
            "http" => UrlScheme::Http,
            other => return Err(TargetError::UnknownScheme(other.to_owned())),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(TargetError::Credentials);
        }
        // The parser has normalised every spelling of an IPv4 address (octal, decimal, shortened).
        let host = url.host_str().unwrap_or_default();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = match bare.parse::<IpAddr>() {
            Ok(address) => {
                self.permitted(scheme, &[address])?;
                None
            }
            Err(_not_an_address) => {
                if scheme == UrlScheme::Http && self.allowed.is_empty() {
                    return Err(TargetError::Plain);
                }
                Some(host.to_owned())
            }
        };
        Ok(DeliveryTarget { url, scheme, name })
    }

    /// The addresses of a host to which deliveries may go; an error when there is none.
    pub fn permitted(
        &self,
        scheme: UrlScheme,
        addresses: &[IpAddr],
    ) -> Result<Vec<IpAddr>, TargetError> {
        let permitted: Vec<IpAddr> = addresses
            .iter()
            .copied()
            .filter(|address| {
                self.allowed.iter().any(|network| network.contains(address))
                    || (scheme == UrlScheme::Https && is_public(*address))
            })
            .collect();
        match (permitted.is_empty(), scheme) {
            (false, _) => Ok(permitted),
            (true, UrlScheme::Https) => Err(TargetError::NotPublic),
            (true, UrlScheme::Http) => Err(TargetError::Plain),
        }
    }
}

/// Whether an address can be reached from everywhere, so that reaching it from here reveals nothing.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !NON_PUBLIC_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => {
            PUBLIC_V6.contains(&address)
                && !NON_PUBLIC_V6.iter().any(|network| network.contains(&address))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed() -> Policy {
        Policy::default()
    }

    fn opened(networks: &[&str]) -> Policy {
        Policy::new(networks.iter().map(|network| network.parse().expect("a network")).collect())
    }

    #[test]
    fn an_address_that_only_the_server_can_reach_is_refused_however_it_is_written() {
        for host in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "0x7f.1",
            "127.0.0.1.",
            "１２７.0.0.1",
            "0.0.0.0",
            "0",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "168.63.129.16",
            "169.254.169.254",
            "2852039166",
            "0251.0376.0251.0376",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "[::]",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::ffff:8.8.8.8]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b:1::1]",
            "[100::1]",
            "[2001::1]",
            "[2001:db8::1]",
            "[2002:7f00:1::]",
            "[3fff::1]",
            "[5f00::1]",
            "[fc00::1]",
            "[fd00:ec2::254]",
            "[fe80::1]",
            "[fec0::1]",
            "[ff02::1]",
        ] {
            let refused = closed().check_url(&format!("https://{host}:8443/hook"));
            assert_eq!(refused, Err(TargetError::NotPublic), "{host}");
            let plain = closed().check_url(&format!("http://{host}/hook"));
            assert_eq!(plain, Err(TargetError::Plain), "{host}");
        }
    }

    #[test]
    fn public_addresses_and_names_are_taken_over_https() {
        for host in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "[2606:4700::1111]", "[2a00::1]"] {
            let target = closed().check_url(&format!("https://{host}/hook?a=b")).expect("public");
            assert_eq!((target.scheme, target.name), (UrlScheme::Https, None), "{host}");
            let plain = closed().check_url(&format!("http://{host}/hook"));
            assert_eq!(plain, Err(TargetError::Plain), "{host}");
        }
        let named = closed().check_url("https://Hooks.Example.com/x").expect("a name");
        assert_eq!(named.name.as_deref(), Some("hooks.example.com"), "to be looked up");
        assert_eq!(closed().check_url("http://hooks.example.com/x"), Err(TargetError::Plain));
    }

    #[test]
    fn what_is_no_web_address_is_refused() {
        for (text, error) in [
            ("ftp://example.com", TargetError::UnknownScheme("ftp".to_owned())),
            ("file:///etc/passwd", TargetError::UnknownScheme("file".to_owned())),
            ("https://user@example.com", TargetError::Credentials),
            ("https://:secret@example.com", TargetError::Credentials),
        ] {
            assert_eq!(closed().check_url(text), Err(error), "{text}");
        }
        for text in ["", "example.com/hook", "https://", "https://[::1", "https://256.1.1.1/"] {
            assert!(matches!(closed().check_url(text), Err(TargetError::Malformed(_))), "{text}");
        }
        let long = format!("https://example.com/{}", "x".repeat(MAX_URL_BYTES));
        assert_eq!(closed().check_url(&long), Err(TargetError::TooLong));
    }

    #[test]
    fn the_operator_opens_networks_and_nothing_beside_them() {
        let policy = opened(&["10.1.0.0/16", "::1/128"]);
        for host in ["10.1.2.3", "[::1]"] {
            for scheme in ["http", "https"] {
                assert!(
                    policy.check_url(&format!("{scheme}://{host}/")).is_ok(),
                    "{scheme}://{host}"
                );
            }
        }
        assert_eq!(policy.check_url("https://10.2.0.1/"), Err(TargetError::NotPublic));
        assert_eq!(policy.check_url("http://8.8.8.8/"), Err(TargetError::Plain));
        assert_eq!(policy.check_url("https://[::ffff:10.1.2.3]/"), Err(TargetError::NotPublic));
    }

    #[test]
    fn of_a_names_addresses_only_the_permitted_ones_are_used() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let (public, private) = (address("8.8.8.8"), address("10.0.0.1"));
        for (scheme, addresses, expected) in [
            (UrlScheme::Https, vec![public, private], Ok(vec![public])),
            (UrlScheme::Https, vec![private], Err(TargetError::NotPublic)),
            (UrlScheme::Https, vec![], Err(TargetError::NotPublic)),
            (UrlScheme::Http, vec![public, private], Err(TargetError::Plain)),
        ] {
            assert_eq!(
                closed().permitted(scheme, &addresses),
                expected,
                "{scheme:?} {addresses:?}"
            );
        }
        let policy = opened(&["10.0.0.0/8"]);
        assert_eq!(policy.permitted(UrlScheme::Http, &[public, private]), Ok(vec![private]));
        assert_eq!(
            policy.permitted(UrlScheme::Https, &[public, private]),
            Ok(vec![public, private])
        );
    }
}
