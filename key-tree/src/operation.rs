//! What a key is asked to do, and the facts by which Datalog sees it.

use std::{fmt, str::FromStr};

use biscuit_auth::builder::{self, Fact, Term};

use crate::{Name, Now, Purpose};

/// What a leaf's key is used for, once.
///
/// | operation | purpose | facts beside `time`, `weekday`, `minute`, `purpose`, `host`, `vm` |
/// | --- | --- | --- |
/// | [`Operation::Connect`] | session | `operation("connect")`, `port(443)`, `exit("CH")` |
/// | [`Operation::ConnectOnion`] | session | `operation("connect-onion")`, `port(443)` |
/// | [`Operation::Publish`] | onion service | `operation("publish")`, `port(80)` |
/// | [`Operation::Participate`] | DHT node | `operation("participate")` |
/// | [`Operation::Sign`] | signing | `operation("sign")` |
/// | [`Operation::Login`] | SSH | `operation("login")` |
///
/// `time` is a date, `weekday` one of `"monday"` … `"sunday"`, `minute` the minute of the day, all in UTC; `host` and
/// `vm` are the names in the chain. A key of the host's own has no `vm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Open a stream that leaves Tor.
    Connect {
        /// TCP port of the destination.
        port: u16,
        /// Where its exit relay is; `None` when nobody knows, and Datalog sees `exit("??")` as in tor's GeoIP files.
        exit: Option<Country>,
    },
    /// Open a stream to an onion service.
    ConnectOnion {
        /// The service's port.
        port: u16,
    },
    /// Offer an onion service.
    Publish {
        /// The service's port.
        port: u16,
    },
    /// Take part in the DHT.
    Participate,
    /// Sign a message.
    Sign,
    /// Log in with SSH.
    Login,
}

/// A country: two capital letters as in ISO 3166-1 alpha-2. Whether one is given to a country is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

/// A text that is not a [`Country`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a country is written with two capital letters, as in CH")]
pub struct CountryError;

impl Operation {
    /// The purpose that a key for this must have.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        match self {
            Operation::Connect { .. } | Operation::ConnectOnion { .. } => Purpose::Session,
            Operation::Publish { .. } => Purpose::OnionService,
            Operation::Participate => Purpose::DhtNode,
            Operation::Sign => Purpose::Signing,
            Operation::Login => Purpose::Ssh,
        }
    }

    fn as_str(&self) -> &'static str {
        match self {
            Operation::Connect { .. } => "connect",
            Operation::ConnectOnion { .. } => "connect-onion",
            Operation::Publish { .. } => "publish",
            Operation::Participate => "participate",
            Operation::Sign => "sign",
            Operation::Login => "login",
        }
    }

    fn port(&self) -> Option<u16> {
        match *self {
            Operation::Connect { port, .. } | Operation::ConnectOnion { port } | Operation::Publish { port } => {
                Some(port)
            }
            Operation::Participate | Operation::Sign | Operation::Login => None,
        }
    }

    fn exit(&self) -> Option<&str> {
        match self {
            Operation::Connect { exit, .. } => Some(exit.as_ref().map_or("??", Country::as_str)),
            _ => None,
        }
    }

    /// What Datalog is told of this request: at most one fact of each of [`crate::datalog::REQUEST_FACTS`].
    pub(crate) fn facts(&self, now: Now, host: Option<&Name>, vm: Option<&Name>) -> Vec<Fact> {
        let now = now.timestamp();
        let one = |name: &str, term: Term| builder::fact(name, &[term]);
        let text = |name: &str, text: &str| one(name, builder::string(text));
        let mut facts = vec![
            one("time", Term::Date(now.as_unix())),
            text("weekday", now.weekday().as_str()),
            one("minute", builder::int(now.minute_of_day().into())),
            text("operation", self.as_str()),
            text("purpose", self.purpose().as_str()),
        ];
        facts.extend(self.port().map(|port| one("port", builder::int(port.into()))));
        facts.extend(self.exit().map(|exit| text("exit", exit)));
        facts.extend(host.map(|name| text("host", name.as_str())));
        facts.extend(vm.map(|name| text("vm", name.as_str())));
        facts
    }
}

impl fmt::Display for Operation {
    /// For people, and what a proof of possession is bound to: the name, then port and exit where there are some.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        self.port().map_or(Ok(()), |port| write!(f, " {port}"))?;
        self.exit().map_or(Ok(()), |exit| write!(f, " {exit}"))
    }
}

impl Country {
    /// The two letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("two ASCII letters")
    }
}

impl FromStr for Country {
    type Err = CountryError;

    fn from_str(text: &str) -> Result<Country, CountryError> {
        let letters: [u8; 2] = text.as_bytes().try_into().map_err(|_| CountryError)?;
        if letters.iter().all(u8::is_ascii_uppercase) { Ok(Country(letters)) } else { Err(CountryError) }
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn countries_are_two_capital_letters() {
        assert_eq!("CH".parse::<Country>().map(|country| country.to_string()), Ok("CH".to_owned()));
        assert!(["", "C", "ch", "CHE", "ä", "??"].into_iter().all(|text| text.parse::<Country>().is_err()));
    }

    #[test]
    fn an_operation_is_shown_whole() {
        let connect = |exit| Operation::Connect { port: 443, exit };
        assert_eq!(connect("CH".parse().ok()).to_string(), "connect 443 CH");
        assert_eq!(connect(None).to_string(), "connect 443 ??");
        assert_eq!(Operation::Publish { port: 80 }.to_string(), "publish 80");
        assert_eq!(Operation::Sign.to_string(), "sign");
    }
}
