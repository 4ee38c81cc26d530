//! What a purpose's key may do: the limits that a person writes, and the terms of a grant that they become.

use key_tree::{Country, DatalogError, Level, Name, Terms, Validity, Weekday};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How many ports, countries or days are taken in one list.
const LIST_MAX: usize = 64;

/// Limits of a grant. What is not limited here is as it is for the VM. They stay when the grant is renewed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// These ports only: those of destinations, and those of published services.
    #[schema(max_items = 64)]
    pub ports: Vec<u16>,
    /// Exits in these countries only, each as two capital letters.
    #[schema(max_items = 64)]
    pub exits: Vec<String>,
    /// On these days only, in UTC: `monday` to `sunday`.
    #[schema(max_items = 64)]
    pub days: Vec<String>,
    /// Facts and checks in Datalog, as Biscuit writes it, each ended by `;`.
    #[schema(max_length = 2048)]
    pub check: String,
    /// Hours that a grant lasts, 1 to 24; 24 where none is given.
    #[schema(minimum = 1, maximum = 24)]
    pub hours: Option<u8>,
}

/// Limits that make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// Not a country.
    #[error("{0:?} is not a country: use two capital letters, as in CH")]
    Country(String),
    /// Not a day.
    #[error("{0:?} is not a day: use monday, tuesday, wednesday, thursday, friday, saturday or sunday")]
    Day(String),
    /// Not so many hours.
    #[error("a grant lasts 1 to 24 hours, not {0}")]
    Hours(u8),
    /// A list without end.
    #[error("a list of limits has at most {LIST_MAX} entries")]
    TooMany,
    /// Not what Datalog may say in a grant.
    #[error("the Datalog is refused: {0}")]
    Datalog(#[from] DatalogError),
}

impl Limits {
    /// How long the grant is to last.
    ///
    /// # Errors
    /// When it is not a day at most.
    pub(super) fn seconds(&self) -> Result<u64, LimitsError> {
        match self.hours.unwrap_or(24) {
            hours @ 1..=24 => Ok(u64::from(hours) * 3600),
            hours => Err(LimitsError::Hours(hours)),
        }
    }

    /// The terms of a grant within these limits.
    ///
    /// # Errors
    /// Names what makes no sense.
    pub(super) fn terms(&self, level: Level, name: Name, validity: Validity) -> Result<Terms, LimitsError> {
        if [self.ports.len(), self.exits.len(), self.days.len()].into_iter().any(|entries| entries > LIST_MAX) {
            return Err(LimitsError::TooMany);
        }
        let country = |text: &String| text.parse::<Country>().map_err(|_| LimitsError::Country(text.clone()));
        let exits = self.exits.iter().map(country).collect::<Result<Vec<_>, _>>()?;
        let days = self.days.iter().map(|text| weekday(text)).collect::<Result<Vec<_>, _>>()?;
        let mut terms = Terms::new(level, name, validity);
        if !self.ports.is_empty() {
            terms = terms.ports(&self.ports);
        }
        if !exits.is_empty() {
            terms = terms.exits(&exits);
        }
        if !days.is_empty() {
            terms = terms.weekdays(&days);
        }
        if self.check.trim().is_empty() { Ok(terms) } else { Ok(terms.datalog(&self.check)?) }
    }
}

fn weekday(text: &str) -> Result<Weekday, LimitsError> {
    let all = Weekday::WORKING_DAYS.into_iter().chain([Weekday::Saturday, Weekday::Sunday]);
    all.into_iter().find(|day| day.as_str() == text).ok_or_else(|| LimitsError::Day(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use key_tree::{Purpose, Timestamp};

    #[test]
    fn limits_that_make_no_sense_are_named() {
        let validity = Validity::new(Timestamp::from_unix(0), Timestamp::from_unix(60)).unwrap();
        let terms = |limits: &Limits| {
            let level = Level::Purpose(Purpose::Session);
            limits.seconds().and_then(|_| limits.terms(level, "web".parse().unwrap(), validity).map(drop))
        };
        let none = Limits::default();
        assert_eq!(terms(&none), Ok(()));
        let all = Limits {
            ports: vec![80],
            exits: vec!["CH".into()],
            days: vec!["monday".into()],
            check: "check if port(80);".into(),
            hours: Some(3),
        };
        assert_eq!(terms(&all), Ok(()));
        assert!(matches!(terms(&Limits { exits: vec!["ch".into()], ..none.clone() }), Err(LimitsError::Country(_))));
        assert!(matches!(terms(&Limits { days: vec!["Monday".into()], ..none.clone() }), Err(LimitsError::Day(_))));
        assert!(matches!(terms(&Limits { hours: Some(25), ..none.clone() }), Err(LimitsError::Hours(25))));
        assert!(matches!(terms(&Limits { ports: vec![1; 65], ..none.clone() }), Err(LimitsError::TooMany)));
        assert!(matches!(terms(&Limits { check: "check".into(), ..none }), Err(LimitsError::Datalog(_))));
    }
}
