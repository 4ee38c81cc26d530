//! The connection of the router program.

use std::{
    sync::{Arc, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use tokio::{
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::mpsc,
};
use wire::{
    control::{FromRouter, ToRouter},
    identity::Refusal,
    route::parts,
};

use super::{
    Inner, SessionError,
    asks::{self, ASKS_MAX},
    read, write,
};
use crate::{onion_services::Wanted, vms::Vms};

/// Configures the router, tells it which VMs to serve, and takes its reports. Ends with the connection.
pub(super) async fn run(inner: &Inner, stream: UnixStream) -> Result<(), SessionError> {
    let (mut reader, writer) = stream.into_split();
    {
        let mut model = inner.shared.model();
        model.program_lost();
        model.tor_is("the router program has just started".into());
    }
    inner.applied.send_replace(Some(0));
    tracing::info!("the router program is connected");
    // Room for an answer to every question, and for as many refusals.
    let (answers, answered) = mpsc::channel(2 * ASKS_MAX);
    let reports = async {
        while let Some(message) = read::<FromRouter>(&mut reader).await? {
            report(inner, message, &answers);
        }
        Ok(())
    };
    tokio::select! {
        result = reports => result,
        result = orders(inner, writer, answered) => result,
    }
}

async fn orders(
    inner: &Inner,
    mut writer: OwnedWriteHalf,
    mut answered: mpsc::Receiver<ToRouter>,
) -> Result<(), SessionError> {
    write(&mut writer, &ToRouter::Configure { network: inner.network.clone(), entry: inner.entry.clone() }).await?;
    let (mut vms, mut routes, mut countries) = (inner.vms.clone(), inner.routes.clone(), inner.countries.subscribe());
    let mut onions = inner.onions.clone();
    // A router that connects is told everything.
    routes.mark_changed();
    countries.mark_changed();
    let (mut served, mut told) = (Vms::new(), Wanted::new());
    let mut notices = inner.notices.subscribe();
    let (mut renewals, mut renewals_sent) = (inner.renewals.subscribe(), 0);
    loop {
        if routes.has_changed().unwrap_or(false) {
            let table = Arc::clone(&routes.borrow_and_update());
            for part in parts(table.number, &table.routes()) {
                write(&mut writer, &ToRouter::Routes(part)).await?;
            }
        }
        if countries.has_changed().unwrap_or(false) {
            let known = countries.borrow_and_update().clone();
            if let Some(known) = known {
                write(&mut writer, &ToRouter::Countries { of: (*known).clone() }).await?;
            }
        }
        let wanted = vms.borrow_and_update().clone();
        for order in changes(&served, &wanted) {
            write(&mut writer, &order).await?;
        }
        // A VM that was attached anew has none until it is told again.
        told.retain(|vm, _| served.get(vm) == wanted.get(vm));
        served = wanted;
        let changes = onion_changes(&served, &told, &onions.borrow_and_update());
        for (vm, onions) in changes {
            write(&mut writer, &ToRouter::Onions { vm: vm.clone(), onions: onions.clone() }).await?;
            told.insert(vm, onions);
        }
        // Of VMs that it has been told of.
        let (new, last) = renewals.borrow_and_update().after(renewals_sent);
        for order in new {
            write(&mut writer, &order).await?;
        }
        renewals_sent = last;
        tokio::select! {
            changed = onions.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
            changed = vms.changed() => if changed.is_err() {
                // The agent is ending: the connection lives until the VM does not.
                return std::future::pending().await;
            },
            // To be told above: waiting has marked it as seen.
            Ok(()) = routes.changed() => routes.mark_changed(),
            Ok(()) = countries.changed() => countries.mark_changed(),
            Ok(()) = renewals.changed() => {}
            Some(answer) = answered.recv() => write(&mut writer, &answer).await?,
            notice = notices.recv() => if let Ok(notice) = notice {
                write(&mut writer, &notice).await?;
            },
        }
    }
}

/// What turns the VMs that are served into those that are wanted: first what ends, then what begins, because a link
/// port that one VM gives up may be another's.
fn changes(served: &Vms, wanted: &Vms) -> Vec<ToRouter> {
    let ending = served.iter().filter(|(name, vm)| wanted.get(name) != Some(vm));
    let beginning = wanted.iter().filter(|(name, vm)| served.get(name) != Some(vm));
    let detach = ending.map(|(name, _)| ToRouter::Detach { vm: name.clone() });
    let attach = beginning.map(|(name, vm)| ToRouter::Attach { vm: name.clone(), link_port: vm.link_port });
    detach.chain(attach).collect()
}

/// What the router is to be told of the onion services of VMs: everything of each VM of which it does not know the
/// latest. Of a VM that has none too, as a router that has outlived an agent may run some.
fn onion_changes(served: &Vms, told: &Wanted, wanted: &Wanted) -> Wanted {
    let onions = served.keys().map(|vm| (vm.clone(), wanted.get(vm).cloned().unwrap_or_default()));
    onions.filter(|(vm, onions)| told.get(vm) != Some(onions)).collect()
}

fn report(inner: &Inner, message: FromRouter, answers: &mpsc::Sender<ToRouter>) {
    let message = match message {
        FromRouter::Relays { orports } => return relays(inner, orports),
        FromRouter::RoutesApplied { table } => {
            inner.applied.send_replace(Some(table));
            return;
        }
        FromRouter::CircuitsRenewed { order } => {
            inner.renewals.send_modify(|renewals| renewals.obeyed(order));
            return;
        }
        FromRouter::Ask { vm, id, question } => {
            return match inner.vms.borrow().contains_key(&vm) {
                true => inner.asks.ask(vm, id, question, answers),
                false => asks::refuse(id, Refusal::NotFound.because("there is no such VM"), answers),
            };
        }
        message => message,
    };
    let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    inner.shared.model().router_says(message, Instant::now(), unix_s);
}

fn relays(inner: &Inner, orports: Vec<std::net::SocketAddr>) {
    let mut relays = inner.relays.lock().unwrap_or_else(PoisonError::into_inner);
    let refused = relays.report(orports);
    if refused > 0 {
        let what = format!("the router named {refused} relays whose addresses are not on the internet: not allowed");
        inner.shared.model().failure(what);
    }
    inner.allow(relays.line());
    if let Err(error) = relays.save(&inner.relays_kept) {
        tracing::warn!(%error, "cannot keep the relays for the next start");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vms::Vm;

    #[test]
    fn the_router_is_told_all_that_it_does_not_know_of_onion_services() {
        let vm = |name: &str| -> wire::VmName { name.parse().unwrap() };
        let served: Vms = ["a", "b"].map(|name| (vm(name), Vm { link_port: 2048, nature: Default::default() })).into();
        let mut some = wire::onion::Onions::default();
        some.authorised.insert(wire::onion::OnionAddress::of(&[1; 32]), [2; 32].into());
        let none = wire::onion::Onions::default();
        let wanted: Wanted = [(vm("a"), some.clone()), (vm("gone"), some.clone())].into();
        let all: Wanted = [(vm("a"), some.clone()), (vm("b"), none.clone())].into();
        assert_eq!(onion_changes(&served, &Wanted::new(), &wanted), all);
        assert_eq!(onion_changes(&served, &all, &wanted), Wanted::new());
        assert_eq!(onion_changes(&served, &all, &Wanted::new()), [(vm("a"), none)].into());
    }

    #[test]
    fn changes_lead_from_what_is_to_what_is_wanted() {
        let served = |link_port| Vm { link_port, nature: Default::default() };
        let vms =
            |all: &[(&str, u32)]| all.iter().map(|(vm, port)| (vm.parse().unwrap(), served(*port))).collect::<Vms>();
        let detach = |vm: &str| ToRouter::Detach { vm: vm.parse().unwrap() };
        let attach = |vm: &str, link_port| ToRouter::Attach { vm: vm.parse().unwrap(), link_port };
        let (none, ab, bc) = (vms(&[]), vms(&[("a", 1), ("b", 2)]), vms(&[("b", 2), ("c", 1)]));
        assert_eq!(changes(&none, &ab), [attach("a", 1), attach("b", 2)]);
        assert_eq!(changes(&ab, &bc), [detach("a"), attach("c", 1)]);
        assert_eq!(changes(&ab, &ab), []);
        assert_eq!(changes(&vms(&[("a", 1)]), &vms(&[("a", 3)])), [detach("a"), attach("a", 3)]);
        assert_eq!(changes(&ab, &none), [detach("a"), detach("b")]);
    }
}
