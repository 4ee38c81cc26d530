//! Bytes as hexadecimal digits, in lower case.

use zeroize::Zeroizing;

/// The digits of `bytes`.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).expect("a nibble is a digit");
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
}

/// The bytes that `text` stands for; `None` when it is not an even number of hexadecimal digits. They may be a secret,
/// and are wiped.
#[must_use]
pub fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2));
    for pair in text.as_bytes().chunks_exact(2) {
        let nibble = |byte: u8| char::from(byte).to_digit(16).and_then(|nibble| u8::try_from(nibble).ok());
        bytes.push(nibble(pair[0])? << 4 | nibble(pair[1])?);
    }
    Some(bytes)
}

/// As [`decode`], of `2 * N` digits.
#[must_use]
pub fn decode_array<const N: usize>(text: &str) -> Option<Zeroizing<[u8; N]>> {
    let bytes = decode(text)?;
    let mut array = Zeroizing::new([0; N]);
    if bytes.len() != N {
        return None;
    }
    array.copy_from_slice(&bytes);
    Some(array)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(encode(&[0, 0x1f, 0xff]), "001fff");
        assert_eq!(decode("001FFf").map(|bytes| bytes.to_vec()), Some(vec![0, 0x1f, 0xff]));
        assert_eq!(decode_array::<2>("0102").map(|bytes| *bytes), Some([1, 2]));
        assert!(decode_array::<2>("010203").is_none());
        assert!(["0", "0g", "+1", "é"].into_iter().all(|text| decode(text).is_none()));
    }
}
