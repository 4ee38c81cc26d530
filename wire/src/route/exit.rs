//! By which countries a stream may leave Tor.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Problem;

/// How many countries a line may name.
pub const COUNTRIES_MAX: usize = 64;

/// Two letters that stand for a country (ISO 3166-1 alpha-2), in upper case. Whether there is such a country, and an
/// exit in it, is not looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Country([u8; 2]);

impl FromStr for Country {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Country, Problem> {
        match *text.as_bytes() {
            [a, b] if a.is_ascii_alphabetic() && b.is_ascii_alphabetic() => {
                Ok(Country([a.to_ascii_uppercase(), b.to_ascii_uppercase()]))
            }
            _ => Err(Problem::Country),
        }
    }
}

impl TryFrom<String> for Country {
    type Error = Problem;

    fn try_from(text: String) -> Result<Country, Problem> {
        text.parse()
    }
}

impl From<Country> for String {
    fn from(country: Country) -> String {
        country.to_string()
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|letter| write!(f, "{}", char::from(*letter)))
    }
}

impl fmt::Debug for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// One country or several, in order, none twice; at most [`COUNTRIES_MAX`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<Country>", into = "Vec<Country>")]
pub struct Countries(Vec<Country>);

impl TryFrom<Vec<Country>> for Countries {
    type Error = Problem;

    fn try_from(mut countries: Vec<Country>) -> Result<Countries, Problem> {
        if countries.is_empty() || countries.len() > COUNTRIES_MAX {
            return Err(Problem::CountryCount);
        }
        countries.sort_unstable();
        match countries.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Problem::CountryTwice(pair[0])),
            None => Ok(Countries(countries)),
        }
    }
}

impl From<Countries> for Vec<Country> {
    fn from(countries: Countries) -> Vec<Country> {
        countries.0
    }
}

impl FromStr for Countries {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Countries, Problem> {
        let countries: Result<Vec<_>, _> = text.split(',').take(COUNTRIES_MAX + 1).map(str::parse).collect();
        Countries::try_from(countries?)
    }
}

impl fmt::Display for Countries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, country) in self.0.iter().enumerate() {
            write!(f, "{}{country}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// Which exits a stream may leave by. Where no such exit is known the stream fails; it never leaves by another.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Exit {
    /// By any.
    #[default]
    Any,
    /// By those in one of these countries.
    In(Countries),
    /// By those that are known to be in a country, and in none of these.
    NotIn(Countries),
}

impl Exit {
    /// Whether an exit may be used that is in `country`; `None` where that is not known.
    #[must_use]
    pub fn allows(&self, country: Option<Country>) -> bool {
        match (self, country) {
            (Exit::Any, _) => true,
            (_, None) => false,
            (Exit::In(countries), Some(country)) => countries.0.contains(&country),
            (Exit::NotIn(countries), Some(country)) => !countries.0.contains(&country),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn countries_are_two_letters_in_order_and_none_twice() {
        assert_eq!("de,CH,at".parse::<Countries>().unwrap().to_string(), "AT,CH,DE");
        for text in ["", "C", "CHE", "C1", "ü", "CH,", "CH, DE", "??"] {
            assert_eq!(text.parse::<Countries>(), Err(Problem::Country), "{text}");
        }
        assert_eq!("CH,ch".parse::<Countries>(), Err(Problem::CountryTwice("CH".parse().unwrap())));
        assert_eq!(vec!["CH"; 65].join(",").parse::<Countries>(), Err(Problem::CountryCount));
        assert!(serde_json::from_str::<Countries>("[]").is_err());
    }

    #[test]
    fn an_exit_of_which_nothing_is_known_is_only_good_for_any() {
        let country = |text: &str| Some(text.parse().unwrap());
        let countries: Countries = "CH,DE".parse().unwrap();
        for (exit, ch, us, unknown) in [
            (Exit::Any, true, true, true),
            (Exit::In(countries.clone()), true, false, false),
            (Exit::NotIn(countries), false, true, false),
        ] {
            assert_eq!((exit.allows(country("ch")), exit.allows(country("us")), exit.allows(None)), (ch, us, unknown));
        }
    }
}
