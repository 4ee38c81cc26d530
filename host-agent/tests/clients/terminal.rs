//! `oht top` and `oht console` in a terminal of tmux, read off its screen.

use std::{
    fs,
    process::{Command, Output},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::world::World;

const PATIENCE: Duration = Duration::from_secs(30);

/// A terminal of 120 by 40 characters in which a command runs; it ends with the value.
struct Terminal<'a>(&'a World);

impl<'a> Terminal<'a> {
    fn run(world: &'a World, command: &str) -> Terminal<'a> {
        let terminal = Terminal(world);
        let home = world.path("");
        let line = format!(
            "HOME={0} XDG_STATE_HOME={0}/state XDG_CONFIG_HOME={0} exec {1} {command} --run-dir {0}/r --state-dir {0}/s",
            home.to_str().unwrap().trim_end_matches('/'),
            env!("CARGO_BIN_EXE_oht"),
        );
        let started = terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "120", "-y", "40", &line]);
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> Output {
        let mut tmux = Command::new("tmux");
        tmux.arg("-S").arg(self.0.path("tmux")).args(arguments).env_remove("TMUX").env("LC_ALL", "C.UTF-8");
        tmux.output().expect("tmux is there: ci/setup installs it")
    }

    fn screen(&self) -> String {
        // With the lines above the top: tmux itself adds one when a program has ended.
        String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p", "-S", "-3"]).stdout).into_owned()
    }

    fn until(&self, words: &str) {
        let last = Instant::now() + PATIENCE;
        while !self.screen().contains(words) {
            assert!(Instant::now() < last, "{words:?} does not appear on\n{}", self.screen());
            sleep(Duration::from_millis(20));
        }
    }

    /// Types keys, named as tmux names them.
    fn press(&self, keys: &[&str]) {
        assert!(self.tmux(&[&["send-keys"], keys].concat()).status.success());
    }

    fn has_ended(&self) {
        let last = Instant::now() + PATIENCE;
        while self.tmux(&["has-session"]).status.success() {
            assert!(Instant::now() < last, "it goes on:\n{}", self.screen());
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn top_shows_vms_as_they_come_and_go() {
    let mut world = World::new();
    world.start();
    assert!(world.oht(&["vm", "add", "web"]).status.success());
    let terminal = Terminal::run(&world, "top");
    terminal.until("circuits of web");
    assert!(world.oht(&["vm", "add", "bank"]).status.success());
    terminal.until("circuits of bank");
    terminal.press(&["Down"]);
    terminal.until("circuits of web");
    assert!(world.oht(&["vm", "rm", "web"]).status.success());
    terminal.until("vm      web: removed");
    terminal.until("circuits of bank");
    terminal.tmux(&["resize-window", "-x", "60", "-y", "20"]);
    terminal.until("circuits of bank");
    terminal.press(&["q"]);
    terminal.has_ended();
}

#[test]
fn top_ends_with_the_agent_and_says_so() {
    let mut world = World::new();
    world.start();
    let refused = world.oht(&["top"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("draws on a terminal"), "{refused:?}");
    let terminal = Terminal::run(&world, "top");
    terminal.until("no VMs");
    terminal.tmux(&["set-option", "remain-on-exit", "on"]);
    assert!(world.oht(&["down"]).status.success());
    terminal.until("the agent has ended");
}

#[test]
fn the_console_completes_remembers_and_keeps_what_is_saved() {
    let mut world = World::new();
    world.start();
    // Named, so that no test writes to the machine's own.
    let file = world.path("agent.toml");
    let command = format!("console --config {}", file.display());
    let terminal = Terminal::run(&world, &command);
    terminal.until("oht>");
    terminal.press(&["/vm ad", "Tab", " web", "Enter"]);
    terminal.until("added web");
    terminal.press(&["/vm list", "Enter"]);
    terminal.until("web: not linked");
    terminal.press(&["/vm lst", "Enter"]);
    terminal.until("a similar subcommand exists");
    terminal.press(&["list", "Enter"]);
    terminal.until("a line begins with a slash");
    terminal.press(&["/set memory_mib 128", "Enter"]);
    terminal.until("memory_mib is set");
    terminal.press(&["/config", "Enter"]);
    terminal.until("memory_mib = 128");
    terminal.press(&["/set memory 1", "Enter"]);
    terminal.until("the configuration would be wrong then");
    terminal.press(&["/quit", "Enter"]);
    terminal.until("/save keeps them");
    terminal.press(&["/save", "Enter"]);
    terminal.until("saved");
    terminal.press(&["/quit", "Enter"]);
    terminal.has_ended();
    drop(terminal);
    assert_eq!(fs::read_to_string(file).unwrap(), "memory_mib = 128\n");
    let history = fs::read_to_string(world.path("state/oht/console-history")).unwrap();
    assert!(history.contains("/vm add web"), "{history}");
    let again = Terminal::run(&world, &command);
    again.until("oht>");
    again.press(&["Up"]);
    again.until("oht> /quit");
}

#[test]
fn lines_from_a_file_are_a_script_that_ends_at_the_first_that_fails() {
    let mut world = World::new();
    world.start();
    let done = world.oht_told(&["console"], "# two VMs\n/vm add a\n\n/vm add b\n");
    assert!(done.status.success(), "{done:?}");
    let failed = world.oht_told(&["console"], "/vm add a\n/vm add c\n");
    assert!(!failed.status.success() && String::from_utf8_lossy(&failed.stderr).contains("already"), "{failed:?}");
    let status = world.status();
    let names: Vec<_> = status["vms"].as_array().unwrap().iter().map(|vm| vm["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b"]);
}
