//! How `oht top` looks. Draws [`State`] and changes nothing.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Paragraph, Row, Table},
};

use super::state::{State, VmRow};
use crate::{cli::output, keys::report::KeyTree, status::CircuitStatus};

/// Digits of a relay's identity that are shown of its 40: enough to tell the relays of a consensus apart.
const IDENTITY_DIGITS: usize = 8;

/// Keys that are named as the next to end.
const KEYS_SHOWN: usize = 3;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let vms = u16::try_from(state.vms.len()).unwrap_or(u16::MAX).clamp(1, 12);
    let parts = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(vms.saturating_add(3)),
        Constraint::Min(5),
        Constraint::Length(6),
        Constraint::Length(1),
    ]);
    let [head, vms, circuits, lines, keys] = parts.areas(frame.area());
    frame.render_widget(Paragraph::new(heading(state)), head);
    draw_vms(frame, state, vms);
    draw_circuits(frame, state, circuits);
    let block = Block::bordered().title(" events ");
    let room = block.inner(lines).height.into();
    let newest = state.lines.iter().rev().take(room).rev().map(|line| Line::raw(line.as_str()));
    frame.render_widget(Paragraph::new(newest.collect::<Vec<_>>()).block(block), lines);
    frame.render_widget(Line::styled("q quit   up/down choose a VM", Style::new().fg(Color::DarkGray)), keys);
}

fn heading(state: &State) -> Vec<Line<'_>> {
    let Some(status) = &state.status else { return vec![Line::raw("waiting for the agent")] };
    let usable = if state.tor.usable { good("usable") } else { bad("not usable") };
    let router = match status.router.state {
        crate::status::RouterState::Ready => good("ready"),
        other => bad(output::state(other)),
    };
    let tor = format!(" ({} %, {})", state.tor.percent, state.tor.status);
    vec![
        Line::from(vec![
            Span::raw("router "),
            router,
            Span::raw(format!(", {}, started again {} times", status.router.accel, status.router.restarts)),
        ]),
        Line::from(vec![Span::raw("tor    "), usable, Span::raw(tor)]),
        state.keys.as_ref().map_or_else(Line::default, keys),
    ]
}

/// Where the keys are, and which end next.
fn keys(tree: &KeyTree) -> Line<'_> {
    let mut ends: Vec<_> = tree
        .branches
        .iter()
        .filter(|key| key.why.is_none() && !key.replaced)
        .filter_map(|key| Some((key.end?, &key.name)))
        .collect();
    ends.sort_unstable();
    let end = |(end, name): &(u64, &String)| format!("{name} in {}", time(end.saturating_sub(tree.now)));
    let next: Vec<_> = ends.iter().take(KEYS_SHOWN).map(end).collect();
    let dead = tree.branches.iter().filter(|key| key.why.is_some() && !key.replaced).count();
    let mut spans = vec![Span::raw(format!("keys   {}", tree.keys.detail))];
    if !next.is_empty() {
        spans.push(Span::raw(format!("; next to be renewed: {}", next.join(", "))));
    }
    if dead > 0 {
        spans.push(Span::styled(format!("; {dead} cannot be used"), Style::new().fg(Color::Red)));
    }
    Line::from(spans)
}

/// A time in the unit that suits it.
fn time(seconds: u64) -> String {
    match seconds {
        0..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn good(text: &str) -> Span<'_> {
    Span::styled(text, Style::new().fg(Color::Green))
}

fn bad(text: &str) -> Span<'_> {
    Span::styled(text, Style::new().fg(Color::Red).add_modifier(Modifier::BOLD))
}

fn draw_vms(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let header = Row::new(["VM", "LINK", "FLOWS", "CIRCUITS", "OUT/s", "IN/s", "OUT", "IN", "RETRIES", "DROPS"])
        .style(Style::new().add_modifier(Modifier::BOLD));
    let rows = state.vms.iter().enumerate().map(|(at, (name, vm))| {
        let style = if at == state.selected { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        Row::new(cells(name, vm)).style(style)
    });
    let widths = [
        Constraint::Min(8),
        Constraint::Length(4),
        Constraint::Length(6),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(7),
        Constraint::Length(7),
    ];
    // What is selected is always among what is drawn.
    let room = usize::from(area.height.saturating_sub(3)).max(1);
    let above = (state.selected + 1).saturating_sub(room);
    let table = Table::new(rows.skip(above), widths).header(header);
    frame.render_widget(table.block(Block::bordered().title(" VMs ")), area);
}

fn cells(name: &str, vm: &VmRow) -> [String; 10] {
    let link = if vm.link_up { "up" } else { "down" }.to_owned();
    let Some(usage) = &vm.usage else {
        let mut cells = [const { String::new() }; 10];
        (cells[0], cells[1]) = (name.into(), link);
        return cells;
    };
    let rate = |bytes: f64| output::bytes(bytes as u64);
    [
        name.into(),
        link,
        usage.flows.to_string(),
        usage.circuits.to_string(),
        rate(vm.rate.0),
        rate(vm.rate.1),
        output::bytes(usage.bytes_from_vm),
        output::bytes(usage.bytes_to_vm),
        usage.retries.to_string(),
        usage.drops.values().sum::<u64>().to_string(),
    ]
}

fn draw_circuits(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let Some((name, vm)) = state.selected() else {
        let block = Block::bordered().title(" circuits ");
        return frame.render_widget(Paragraph::new("no VMs: add one with `oht vm add NAME`").block(block), area);
    };
    let header = Row::new(["CIRCUIT", "TO", "STREAMS", "RELAYS, FROM GUARD TO EXIT"])
        .style(Style::new().add_modifier(Modifier::BOLD));
    let widths = [Constraint::Length(10), Constraint::Length(7), Constraint::Length(7), Constraint::Min(20)];
    let block = Block::bordered().title(format!(" circuits of {name} that carried streams since this view began "));
    frame.render_widget(Table::new(vm.circuits.iter().map(circuit), widths).header(header).block(block), area);
}

fn circuit(circuit: &CircuitStatus) -> Row<'_> {
    let country = circuit.country.as_deref().map_or_else(String::new, |country| format!(" {country}"));
    let to = if circuit.onion { "onion".to_owned() } else { format!("exit{country}") };
    let short = |relay: &String| relay.get(..IDENTITY_DIGITS).unwrap_or(relay).to_owned();
    let relays: Vec<_> = circuit.relays.iter().map(short).collect();
    Row::new([circuit.circuit.clone(), to, circuit.streams.to_string(), relays.join(" > ")])
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Instant};

    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::{
        events::Event,
        keys::report::{KeyBranch, KeysStatus},
        status::VmUsage,
    };

    fn screen(state: &State, columns: u16, lines: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        terminal.backend().to_string()
    }

    fn state(vms: usize) -> State {
        let (mut state, now) = (State::default(), Instant::now());
        for number in 0..vms {
            state.apply(Event::VmAdded { vm: format!("vm{number}") }, now);
        }
        state
    }

    #[test]
    fn a_vm_its_traffic_and_its_circuits_are_on_the_screen() {
        let mut state = state(2);
        let usage = VmUsage {
            flows: 3,
            circuits: 2,
            retries: 1,
            bytes_from_vm: 2048,
            bytes_to_vm: 1 << 20,
            drops: BTreeMap::from([("half_open".into(), 4)]),
        };
        state.apply(Event::Usage { vm: "vm0".into(), usage }, Instant::now());
        let relays = vec!["0123456789ABCDEF".into(), "FEDCBA9876543210".into()];
        let circuit = CircuitStatus {
            vm: "vm0".into(),
            circuit: "7".into(),
            relays,
            onion: true,
            country: None,
            streams: 5,
            last: 0,
        };
        state.apply(Event::Stream { circuit }, Instant::now());
        let screen = screen(&state, 110, 30);
        for words in ["vm0", "2.0 KiB", "1.0 MiB", "circuits of vm0", "01234567 > FEDCBA98", "onion", "vm1: added"] {
            assert!(screen.contains(words), "{words} is not on\n{screen}");
        }
    }

    #[test]
    fn the_keys_that_end_next_are_named_and_dead_ones_counted() {
        let branch = |name: &str, end, why: Option<&str>| KeyBranch {
            level: "vm".into(),
            name: name.into(),
            key: String::new(),
            start: Some(0),
            end: Some(end),
            state: "live".into(),
            why: why.map(Into::into),
            replaced: false,
            checks: vec![],
            revocation_id: None,
        };
        let status = KeysStatus { detail: "unlocked".into(), ..KeysStatus::default() };
        let branches =
            vec![branch("host", 31 * 86_400, None), branch("web", 7300, None), branch("bank", 1, Some("revoked"))];
        let tree = KeyTree { keys: status, now: 100, branches };
        let said = keys(&tree).to_string();
        assert_eq!(said, "keys   unlocked; next to be renewed: web in 2 h, host in 30 days; 1 cannot be used");
    }

    #[test]
    fn many_vms_and_a_tiny_terminal_are_no_trouble() {
        let mut state = state(64);
        state.select(63);
        assert!(screen(&state, 100, 40).contains("vm9"), "names are sorted: the last is vm9");
        for (columns, lines) in [(1, 1), (10, 3), (300, 2), (2, 200)] {
            screen(&state, columns, lines);
        }
        screen(&State::default(), 80, 24);
    }
}
