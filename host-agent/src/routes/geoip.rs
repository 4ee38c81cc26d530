//! In which countries relays are: out of the file `geoip` of Debian's package tor-geoipdb, in the format of C tor.
//!
//! ```text
//! # comment
//! 16777216,16777471,AU
//! ```
//!
//! that is: first address, last address, both IPv4 as a number, and a country; `??` where it is not known. Every relay
//! has an IPv4 address, so the file for IPv6 is not needed. The file has half a million lines and is read once for each
//! consensus, and kept by nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufRead, BufReader, Read},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use wire::{control::COUNTRY_ADDRESSES_MAX, route::Country};

/// Where Debian's package puts its files.
pub const USUAL_DIRECTORY: &str = "/usr/share/tor";

/// The name of the file.
const FILE: &str = "geoip";

/// Bytes of the file at most: ten times what it has today.
const FILE_BYTES_MAX: u64 = 128 << 20;

/// Why it is not known in which countries relays are.
#[derive(Debug, thiserror::Error)]
pub enum GeoipError {
    /// The file cannot be read.
    #[error(
        "routes ask for the country of an exit, which is not known: cannot read {path}: install the package tor-geoipdb, \
         or say with --geoip-dir where its files are; such streams fail until then"
    )]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A line that is none.
    #[error(
        "routes ask for the country of an exit, which is not known: {path}:{line} is not in the format of C tor's geoip"
    )]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
}

/// The addresses of each country; those of which the file in `directory` says nothing are left out.
///
/// # Errors
/// When there is no file, or it is none.
pub fn countries(
    directory: &Path,
    addresses: &BTreeSet<Ipv4Addr>,
) -> Result<BTreeMap<Country, Vec<Ipv4Addr>>, GeoipError> {
    let path = directory.join(FILE);
    let read = |source| GeoipError::Read { path: path.clone(), source };
    let file = File::open(&path).map_err(read)?;
    let mut of = BTreeMap::<Country, Vec<Ipv4Addr>>::new();
    let mut count = 0;
    for (number, line) in (1..).zip(BufReader::new(file.take(FILE_BYTES_MAX)).lines()) {
        let line = line.map_err(read)?;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (first, last, country) = range(&line).ok_or(GeoipError::Line { path: path.clone(), line: number })?;
        let Ok(country) = country.parse() else { continue };
        if first > last {
            continue;
        }
        for address in addresses.range(first..=last).take(COUNTRY_ADDRESSES_MAX - count) {
            of.entry(country).or_default().push(*address);
            count += 1;
        }
    }
    Ok(of)
}

fn range(line: &str) -> Option<(Ipv4Addr, Ipv4Addr, &str)> {
    let mut words = line.trim_end().splitn(3, ',');
    let mut address = || words.next()?.parse().ok().map(Ipv4Addr::from_bits);
    let (first, last) = (address()?, address()?);
    Some((first, last, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<Ipv4Addr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_are_found_at_both_ends_of_a_range_and_not_behind() {
        let dir = tempfile::tempdir().unwrap();
        let text = "# comment\n16777216,16777471,AU\n16777472,16778239,CN\n16778240,16779263,??\n3232235520,1,CH\n";
        std::fs::write(dir.path().join("geoip"), text).unwrap();
        let asked = addresses(&["1.0.0.0", "1.0.0.255", "1.0.1.0", "1.0.3.255", "1.0.4.0", "0.255.255.255", "9.9.9.9"]);
        let found = countries(dir.path(), &asked.into_iter().collect()).unwrap();
        let of = |country: &str| found.get(&country.parse().unwrap()).cloned();
        assert_eq!(of("AU"), Some(addresses(&["1.0.0.0", "1.0.0.255"])));
        assert_eq!(of("CN"), Some(addresses(&["1.0.1.0", "1.0.3.255"])));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_file_that_is_missing_or_something_else_is_told_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = countries(dir.path(), &BTreeSet::new()).unwrap_err().to_string();
        assert!(error.contains("tor-geoipdb") && error.contains("--geoip-dir"), "{error}");
        for text in ["1,2\n", "a,b,CH\n", "{}", "1,-2,CH", "1,4294967296,CH"] {
            std::fs::write(dir.path().join("geoip"), text).unwrap();
            let error = countries(dir.path(), &BTreeSet::new()).unwrap_err();
            assert!(matches!(error, GeoipError::Line { line: 1, .. }), "{text}");
        }
    }
}
