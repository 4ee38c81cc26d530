//! Which relays are in which country, for routes that ask for it.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, sync::Arc, sync::PoisonError};

use wire::route::Country;

use super::Control;
use crate::{router_vm::words, routes::geoip};

/// The addresses of relays by their country.
pub(super) type Countries = BTreeMap<Country, Vec<Ipv4Addr>>;

impl Control {
    /// Finds out in which countries relays are, out of the files in `directory`, each time that there are other relays or
    /// other routes, and tells the router, and who looks at circuits. While no route asks, it is no failure if there are no
    /// files. Runs for ever.
    pub async fn keep_countries(self, directory: PathBuf) {
        let (mut routes, mut allowed) = (self.0.routes.clone(), self.allowed());
        loop {
            let asked = routes.borrow_and_update().asks_for_countries();
            allowed.borrow_and_update();
            if asked || directory.exists() {
                self.look_up(directory.clone(), asked).await;
            }
            tokio::select! {
                changed = routes.changed() => if changed.is_err() { return },
                changed = allowed.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn look_up(&self, directory: PathBuf, asked: bool) {
        let relays = self.0.relays.lock().unwrap_or_else(PoisonError::into_inner).v4_addresses();
        let found = tokio::task::spawn_blocking(move || geoip::countries(&directory, &relays)).await;
        match found {
            Ok(Ok(countries)) => {
                let by_address =
                    countries.iter().flat_map(|(country, relays)| relays.iter().map(|relay| (*relay, *country)));
                self.0.shared.model().countries = by_address.collect();
                self.0.countries.send_if_modified(|known| {
                    let is_news = known.as_deref() != Some(&countries);
                    *known = Some(Arc::new(countries));
                    is_news
                });
            }
            Ok(Err(error)) if !asked => tracing::debug!("{}", words(&error)),
            Ok(Err(error)) => self.0.shared.model().failure(words(&error)),
            Err(crash) => self.0.shared.model().failure(format!("looking up the relays' countries: {crash}")),
        }
    }
}
