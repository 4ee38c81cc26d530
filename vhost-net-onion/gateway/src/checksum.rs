//! The Internet checksum (RFC 1071), fast enough for payloads of 64 KiB.

use std::net::IpAddr;

/// The sum of `bytes` as 16-bit words in network order, an odd one padded with zero, on top of `sum`. Not complemented.
pub(crate) fn add(sum: u16, bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<4>();
    // In this machine's byte order: the sum of swapped words is the swapped sum (RFC 1071, section 2B). Words of 32
    // bits carry into the upper half of 64, which 2^32 words cannot fill.
    let mut total = words.iter().fold(0u64, |total, word| total.wrapping_add(u64::from(u32::from_ne_bytes(*word))));
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total = total.wrapping_add(u64::from(u32::from_ne_bytes(last)));
    fold(u64::from(sum) + u64::from(u16::from_be(fold(total))))
}

/// The sum of the pseudo-header of TCP (RFC 9293, section 3.1; RFC 8200, section 8.1) for `length` bytes of `protocol`.
pub(crate) fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u16 {
    let address = |sum, address| match address {
        IpAddr::V4(address) => add(sum, &address.octets()),
        IpAddr::V6(address) => add(sum, &address.octets()),
    };
    let sum = address(address(0, source), destination);
    fold(u64::from(sum) + u64::from(protocol) + length as u64)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(add(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn the_same_as_word_by_word_at_every_length() {
        let bytes: Vec<u8> = (0..3000u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 24) as u8 | 0x80).collect();
        for length in (0..40).chain([1459, 1460, 1461, 3000]) {
            let slow = bytes[..length].chunks(2).fold(0x1234u64, |sum, word| {
                sum + u64::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]))
            });
            assert_eq!(add(0x1234, &bytes[..length]), fold(slow), "{length}");
        }
    }

    #[test]
    fn both_versions_have_a_pseudo_header() {
        let four = pseudo_header("10.0.2.15".parse().unwrap(), "1.2.3.4".parse().unwrap(), 6, 20);
        assert_eq!(four, 0x0a00 + 0x020f + 0x0102 + 0x0304 + 6 + 20);
        let six = pseudo_header("fe80::1".parse().unwrap(), "2001:db8::9".parse().unwrap(), 6, 65_515);
        assert_eq!(six, fold(0xfe80 + 1 + 0x2001 + 0xdb8 + 9 + 6 + 65_515));
    }
}
