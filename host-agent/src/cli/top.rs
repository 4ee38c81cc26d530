//! `oht top`: a live view of the VMs, their traffic and their circuits in the terminal.
//!
//! ```text
//! events ─► [`state::State`] (no I/O) ─► [`view::draw`] ─► terminal
//!   keypresses ────┘
//! ```
//!
//! The terminal is given back as it was, also after a panic (`ratatui::init` sees to that).

mod state;
mod view;

use std::{io::IsTerminal as _, time::Instant};

use anyhow::bail;
use crossterm::event::{Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::DefaultTerminal;
use tokio::sync::mpsc;

use crate::{
    client::{Client, EventStream},
    keys::report::KeyTree,
};
use state::State;

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Quit,
    Up,
    Down,
    Redraw,
}

/// Shows what happens until a key ends it.
///
/// # Errors
/// When there is no terminal, no agent, or the agent ends.
pub async fn top(client: &Client) -> anyhow::Result<()> {
    if !std::io::stdout().is_terminal() {
        bail!(
            "`oht top` draws on a terminal, which standard output is not: `oht status` and `oht events` print instead"
        );
    }
    let events = client.events(None, false).await?;
    // A token may be for less than this.
    let keys = client.get::<KeyTree>("/keys").await.ok();
    let mut terminal = ratatui::try_init()?;
    let ended = show(&mut terminal, events, keys).await;
    ratatui::restore();
    ended
}

async fn show(terminal: &mut DefaultTerminal, mut events: EventStream, keys: Option<KeyTree>) -> anyhow::Result<()> {
    let mut state = State { keys, ..State::default() };
    let mut wishes = wishes();
    loop {
        terminal.draw(|frame| view::draw(frame, &state))?;
        tokio::select! {
            event = events.next() => match event? {
                Some(event) => state.apply(event, Instant::now()),
                None => bail!("the agent has ended"),
            },
            wish = wishes.recv() => match wish {
                Some(Wish::Quit) | None => return Ok(()),
                Some(Wish::Up) => state.select(-1),
                Some(Wish::Down) => state.select(1),
                Some(Wish::Redraw) => {}
            },
        }
    }
}

/// What is asked for by keys. Read by a thread of its own, which ends with the program.
fn wishes() -> mpsc::Receiver<Wish> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while let Ok(input) = crossterm::event::read() {
            let Some(wish) = wish(&input) else { continue };
            if sender.blocking_send(wish).is_err() {
                return;
            }
        }
    });
    receiver
}

fn wish(input: &Input) -> Option<Wish> {
    match input {
        Input::Key(KeyEvent { kind: KeyEventKind::Release, .. }) => None,
        Input::Key(KeyEvent { code: KeyCode::Char('c'), modifiers: KeyModifiers::CONTROL, .. }) => Some(Wish::Quit),
        Input::Key(KeyEvent { code, .. }) => match code {
            KeyCode::Char('q') | KeyCode::Esc => Some(Wish::Quit),
            KeyCode::Up | KeyCode::Char('k') => Some(Wish::Up),
            KeyCode::Down | KeyCode::Char('j') => Some(Wish::Down),
            _ => None,
        },
        Input::Resize(..) => Some(Wish::Redraw),
        _ => None,
    }
}
