//! Bridges, their transports and vanguards, in arti's configuration.
//!
//! With bridges arti connects to nothing else: not to other guards, and not to directory caches, which bridges replace
//! (they tell their own descriptor, and fetch the directory). Its transports are "unmanaged" ones, whose SOCKS5 port is at
//! the stand-in of [`TorEntry::stand_ins`]; it is dialled as everything is, and only the far end of the dialler knows what
//! stands behind it.
//!
//! Vanguards are said explicitly: what arti would choose by itself may be another thing in its next version.

use arti_client::config::{TorClientConfigBuilder, pt::TransportConfigBuilder};
use tor_config::ExplicitOrAuto;
use tor_guardmgr::VanguardMode;
use wire::entry::{TorEntry, Vanguards};

use crate::client::OnionError;

/// Puts an entry into arti's configuration.
pub(crate) fn configure(config: &mut TorClientConfigBuilder, entry: &TorEntry) -> Result<(), OnionError> {
    let mode = match entry.vanguards {
        Vanguards::Lite => VanguardMode::Lite,
        Vanguards::Full => VanguardMode::Full,
    };
    config.vanguards().mode(ExplicitOrAuto::Explicit(mode));
    for bridge in &entry.bridges {
        // Arti's error would show the line.
        config.bridges().bridges().push(bridge.line().parse().map_err(|_| OnionError::Bridge)?);
    }
    for (name, stand_in) in entry.stand_ins() {
        let mut transport = TransportConfigBuilder::default();
        let name = name.as_str().parse().map_err(|_| OnionError::Bridge)?;
        transport.protocols(vec![name]).proxy_addr(stand_in);
        config.bridges().transports().push(transport);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use arti_client::TorClientConfig;
    use tor_guardmgr::{VanguardConfig, bridge::BridgeConfig};
    use tor_linkspec::{HasAddrs, HasChanMethod};

    use super::*;

    fn configured(entry: &TorEntry) -> TorClientConfig {
        let mut config = TorClientConfigBuilder::from_directories("/s", "/c");
        configure(&mut config, entry).unwrap();
        config.build().unwrap()
    }

    #[test]
    fn vanguards_are_what_was_asked_for() {
        let mode = |vanguards| {
            let config = configured(&TorEntry { vanguards, ..TorEntry::default() });
            AsRef::<VanguardConfig>::as_ref(&config).mode()
        };
        assert_eq!(mode(Vanguards::Lite), VanguardMode::Lite);
        assert_eq!(mode(Vanguards::Full), VanguardMode::Full);
    }

    #[test]
    fn bridges_and_their_transports_reach_arti() {
        let rsa = "A".repeat(40);
        let lines = [
            format!("192.0.2.1:443 {rsa}"),
            format!("[2001:db8::1]:9001 {rsa} {}", "A".repeat(43)),
            format!("obfs4 192.0.2.2:443 {rsa} cert=a+b/c=,x iat-mode=0"),
        ];
        let bridges = lines.iter().map(|line| line.parse().unwrap()).collect();
        let config = configured(&TorEntry { bridges, ..TorEntry::default() });
        let bridges: &[BridgeConfig] = config.as_ref();
        assert_eq!(bridges.len(), 3);
        assert_eq!(bridges[0].addrs().collect::<Vec<_>>(), ["192.0.2.1:443".parse().unwrap()]);
        assert!(bridges[1].chan_method().is_direct() && !bridges[2].chan_method().is_direct());
        let none: TorClientConfig = configured(&TorEntry::default());
        assert!(AsRef::<[BridgeConfig]>::as_ref(&none).is_empty());
    }
}
