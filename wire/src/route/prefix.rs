//! A range of addresses that share their first bits.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Problem;

/// The addresses whose first bits are given (RFC 4632 for IPv4; RFC 4291, section 2.3, for IPv6); one address where all
/// are given. IPv4 addresses within IPv6 (`::ffff:0:0/96`) are IPv4 addresses and are not written otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: IpAddr,
    bits: u8,
}

impl Prefix {
    /// The addresses that share the first `bits` bits with `address`.
    ///
    /// # Errors
    /// When there are not so many bits, when bits behind them are set, or for IPv4 within IPv6.
    pub fn new(address: IpAddr, bits: u8) -> Result<Prefix, Problem> {
        if bits > width(address) {
            return Err(Problem::PrefixBits(width(address)));
        }
        if address.to_canonical() != address && bits >= 96 {
            return Err(Problem::Mapped(address.to_canonical()));
        }
        let prefix = Prefix { address, bits };
        let (first, _) = prefix.range();
        match first == number(address) {
            true => Ok(prefix),
            false => Err(Problem::HostBits(Prefix { address: from_number(first, address), bits })),
        }
    }

    /// The address, with the length of the prefix.
    #[must_use]
    pub fn parts(&self) -> (IpAddr, u8) {
        (self.address, self.bits)
    }

    /// Whether an address is of this range. IPv4 within IPv6 counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let (first, last) = self.range();
        address.is_ipv4() == self.address.is_ipv4() && (first..=last).contains(&number(address))
    }

    /// First and last address, as numbers.
    pub(super) fn range(&self) -> (u128, u128) {
        let free = u32::from(width(self.address) - self.bits);
        let mask = 1u128.checked_shl(free).map_or(u128::MAX, |beyond| beyond - 1);
        (number(self.address) & !mask, number(self.address) | mask)
    }

    /// This prefix and every shorter one that contains it.
    pub(super) fn ancestry(&self) -> impl Iterator<Item = Prefix> {
        (0..=self.bits).map(|bits| {
            let (first, _) = Prefix { bits, ..*self }.range();
            Prefix { address: from_number(first, self.address), bits }
        })
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address as a number.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The reverse of [`number`], for the family of `like`.
fn from_number(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4((number as u32).into()),
        IpAddr::V6(_) => IpAddr::V6(number.into()),
    }
}

impl FromStr for Prefix {
    type Err = Problem;

    /// Takes `ADDRESS` and `ADDRESS/BITS`.
    fn from_str(text: &str) -> Result<Prefix, Problem> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| Problem::Address)?;
        let bits = match bits {
            None => width(address),
            Some(bits) if bits.len() <= 3 && bits.bytes().all(|b| b.is_ascii_digit()) => {
                bits.parse().map_err(|_| Problem::PrefixBits(width(address)))?
            }
            Some(_) => return Err(Problem::PrefixBits(width(address))),
        };
        Prefix::new(address, bits)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bits == width(self.address) {
            true => write!(f, "{}", self.address),
            false => write!(f, "{}/{}", self.address, self.bits),
        }
    }
}

impl TryFrom<String> for Prefix {
    type Error = Problem;

    fn try_from(text: String) -> Result<Prefix, Problem> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> String {
        prefix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges() {
        for (prefix, inside, outside) in [
            ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("0.0.0.0/0", "255.255.255.255", "::"),
            ("0.0.0.0/0", "::ffff:192.0.2.1", "::1"),
            ("::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::ffff:192.0.2.1"),
            ("2001:db8::/33", "2001:db8:7fff::", "2001:db8:8000::"),
            ("2001:DB8::1", "2001:db8::1", "2001:db8::2"),
        ] {
            let parsed: Prefix = prefix.parse().unwrap();
            assert!(parsed.contains(inside.parse().unwrap()), "{prefix} {inside}");
            assert!(!parsed.contains(outside.parse().unwrap()), "{prefix} {outside}");
            assert_eq!(parsed.to_string(), prefix.to_ascii_lowercase());
        }
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in ["", "/", "1.2.3.4/", "1.2.3.4/33", "1.2.3.4/-1", "1.2.3.4/+1", "1.2.3.4/008x", "::/129", "::/256"]
        {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
        assert_eq!("10.1.2.3/8".parse::<Prefix>(), Err(Problem::HostBits("10.0.0.0/8".parse().unwrap())));
        assert_eq!("::ffff:10.1.2.3".parse::<Prefix>(), Err(Problem::Mapped("10.1.2.3".parse().unwrap())));
        assert_eq!("01.2.3.4".parse::<Prefix>(), Err(Problem::Address), "octal for some");
    }

    #[test]
    fn the_ancestry_is_every_prefix_around_it() {
        let prefix: Prefix = "192.0.2.0/24".parse().unwrap();
        let ancestry: Vec<_> = prefix.ancestry().collect();
        assert_eq!(ancestry.len(), 25);
        assert_eq!(ancestry[0].to_string(), "0.0.0.0/0");
        assert_eq!(ancestry[23].to_string(), "192.0.2.0/23");
        assert_eq!(ancestry[24], prefix);
        assert!(ancestry.iter().all(|around| around.contains("192.0.2.9".parse().unwrap())));
    }
}
