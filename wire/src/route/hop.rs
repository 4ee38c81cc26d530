//! A proxy behind Tor.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{HostName, Problem};

/// Bytes of the longest user name, and of the longest password (RFC 1929, section 2).
const LOGIN_BYTES_MAX: usize = 255;

/// A SOCKS5 proxy (RFC 1928) that a stream goes through after it left Tor, so that its target sees the proxy and not an
/// exit. It is told the target's name, not an address.
///
/// Written as a URL (RFC 3986), `socks5://USER:PASSWORD@HOST:PORT`; what is not a letter, a digit or one of `-._~` in
/// user or password is written `%XX`. `Display` leaves user and password out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct Hop {
    host: HopHost,
    port: u16,
    login: Option<Login>,
}

/// Where a proxy is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HopHost {
    /// By its name, which the exit resolves; it may be an onion service.
    Name(HostName),
    /// By its address.
    Address(IpAddr),
}

/// User and password for a proxy (RFC 1929): UTF-8, 1 to 255 bytes each, no control characters. Never printed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl Hop {
    /// A proxy at `host` and `port`.
    ///
    /// # Errors
    /// For port 0, and for a login that RFC 1929 or we do not allow.
    pub fn new(host: HopHost, port: u16, login: Option<Login>) -> Result<Hop, Problem> {
        if port == 0 {
            return Err(Problem::Port);
        }
        let allowed =
            |text: &String| (1..=LOGIN_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
        if login.as_ref().is_some_and(|login| !allowed(&login.user) || !allowed(&login.password)) {
            return Err(Problem::HopLogin);
        }
        Ok(Hop { host, port, login })
    }

    /// Where it is.
    #[must_use]
    pub fn host(&self) -> &HopHost {
        &self.host
    }

    /// Its TCP port, never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it wants to be told.
    #[must_use]
    pub fn login(&self) -> Option<&Login> {
        self.login.as_ref()
    }

    /// Whether it is an onion service: then there is no exit on the way to it.
    #[must_use]
    pub fn is_onion(&self) -> bool {
        matches!(&self.host, HopHost::Name(name) if name.is_onion())
    }

    /// The URL with user and password, as it stands in a file.
    pub(super) fn written(&self) -> String {
        let login = self.login.as_ref().map(|login| format!("{}:{}@", escaped(&login.user), escaped(&login.password)));
        format!("{SCHEME}{}{}:{}", login.unwrap_or_default(), self.host, self.port)
    }
}

const SCHEME: &str = "socks5://";

fn escaped(text: &str) -> String {
    let escaped = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escaped).collect()
}

fn unescaped(text: &str) -> Result<String, Problem> {
    let mut bytes = vec![];
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| byte.and_then(|b| char::from(b).to_digit(16)).ok_or(Problem::HopLogin);
        bytes.push(match byte {
            b'%' => (digit(rest.next())? << 4 | digit(rest.next())?) as u8,
            _ => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| Problem::HopLogin)
}

impl FromStr for Hop {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Hop, Problem> {
        let scheme = text.get(..SCHEME.len()).filter(|scheme| scheme.eq_ignore_ascii_case(SCHEME));
        let rest = scheme.map(|_| &text[SCHEME.len()..]).ok_or(Problem::HopScheme)?;
        let (login, place) = rest.rsplit_once('@').map_or((None, rest), |(login, place)| (Some(login), place));
        let login = login.map(|login| -> Result<Login, Problem> {
            let (user, password) = login.split_once(':').ok_or(Problem::HopLogin)?;
            Ok(Login { user: unescaped(user)?, password: unescaped(password)? })
        });
        let place = place.strip_suffix('/').unwrap_or(place);
        let (host, port) = place.rsplit_once(':').ok_or(Problem::HopPort)?;
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits).ok_or(Problem::HopPort)?;
        Hop::new(host.parse()?, port, login.transpose()?)
    }
}

impl FromStr for HopHost {
    type Err = Problem;

    fn from_str(text: &str) -> Result<HopHost, Problem> {
        if let Some(address) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return address.parse().map(|address| HopHost::Address(IpAddr::V6(address))).map_err(|_| Problem::Address);
        }
        match text.parse() {
            Ok(address) => Ok(HopHost::Address(IpAddr::V4(address))),
            Err(_) => text.parse().map(HopHost::Name).map_err(Problem::Host),
        }
    }
}

impl fmt::Display for HopHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HopHost::Name(name) => write!(f, "{name}"),
            HopHost::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            HopHost::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let login = if self.login.is_some() { "…@" } else { "" };
        write!(f, "{SCHEME}{login}{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(…)")
    }
}

/// A proxy as it crosses the link, before it is checked.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    host: HopHost,
    port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    login: Option<Login>,
}

impl TryFrom<Raw> for Hop {
    type Error = Problem;

    fn try_from(Raw { host, port, login }: Raw) -> Result<Hop, Problem> {
        Hop::new(host, port, login)
    }
}

impl From<Hop> for Raw {
    fn from(Hop { host, port, login }: Hop) -> Raw {
        Raw { host, port, login }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(text: &str) -> Hop {
        text.parse().unwrap()
    }

    #[test]
    fn urls_survive_and_nobody_prints_a_password() {
        for (text, written, printed) in [
            ("socks5://proxy.example:1080", "socks5://proxy.example:1080", "socks5://proxy.example:1080"),
            ("SOCKS5://Proxy.Example:1/", "socks5://proxy.example:1", "socks5://proxy.example:1"),
            ("socks5://[2001:DB8::1]:1", "socks5://[2001:db8::1]:1", "socks5://[2001:db8::1]:1"),
            ("socks5://me:s%3Ac%40r%25@192.0.2.1:1", "socks5://me:s%3Ac%40r%25@192.0.2.1:1", "socks5://…@192.0.2.1:1"),
            ("socks5://a@b:c:d@h:1", "socks5://a%40b:c%3Ad@h:1", "socks5://…@h:1"),
            ("socks5://m%C3%BC:x@h:1", "socks5://m%C3%BC:x@h:1", "socks5://…@h:1"),
        ] {
            let hop = hop(text);
            assert_eq!((hop.written().as_str(), hop.to_string().as_str()), (written, printed));
            assert_eq!(written.parse(), Ok(hop.clone()));
            assert!(!format!("{hop:?}").contains("c%"), "{hop:?}");
        }
        assert!(!format!("{:?}", hop("socks5://alice:hunter2@h:1")).contains("hunter2"));
        assert!(!format!("{:?}", hop("socks5://alice:hunter2@h:1")).contains("alice"));
    }

    #[test]
    fn what_is_no_proxy_is_refused() {
        let long = format!("socks5://{}:p@h:1", "u".repeat(256));
        for (text, problem) in [
            ("http://h:1", Problem::HopScheme),
            ("h:1", Problem::HopScheme),
            ("", Problem::HopScheme),
            ("socks5://h", Problem::HopPort),
            ("socks5://h:", Problem::HopPort),
            ("socks5://h:+1", Problem::HopPort),
            ("socks5://h:65536", Problem::HopPort),
            ("socks5://h:0", Problem::Port),
            ("socks5://user@h:1", Problem::HopLogin),
            ("socks5://user:@h:1", Problem::HopLogin),
            ("socks5://u:%0a@h:1", Problem::HopLogin),
            ("socks5://u:%f@h:1", Problem::HopLogin),
            ("socks5://u:%ff@h:1", Problem::HopLogin),
            (&long, Problem::HopLogin),
            ("socks5://[::g]:1", Problem::Address),
        ] {
            assert_eq!(text.parse::<Hop>(), Err(problem), "{text}");
        }
        assert!(matches!("socks5://a_ b:1".parse::<Hop>(), Err(Problem::Host(_))));
        assert!(serde_json::from_str::<Hop>(r#"{"host":{"name":"h"},"port":0}"#).is_err());
        assert!(serde_json::from_str::<Hop>(r#"{"host":{"name":"h"},"port":1,"more":1}"#).is_err());
        assert!(serde_json::from_str::<Hop>(r#"{"host":{"name":"H"},"port":1}"#).is_err());
    }
}
