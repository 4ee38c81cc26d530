//! The command `oht`: what it understands, and which exit code says what.
//!
//! | exit code | meaning |
//! | --- | --- |
//! | 0 | done |
//! | 1 | failed; standard error says why and what to do |
//! | 2 | the command line is wrong |
//! | 3 | the agent is not running |
//! | 4 | `oht route test`: the connection is blocked; `oht route check`: a line can never match |
//!
//! `oht vm run` ends with QEMU's own.

pub mod attach;
pub mod console;
pub mod doctor;
pub mod events;
mod key;
mod onion;
pub mod output;
pub mod route;
pub mod run;
pub mod settings_file;
pub mod token;
pub mod top;
pub mod up;
pub mod vm;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use wire::VmName;

use crate::{
    client::{Client, ClientError},
    config::{Options, SHARED_SOCKET, Settings},
    nature::Kind,
    status::{NewToken, NewVm, Status},
};

/// The onion router VM of this host: VMs reach the world through Tor and nothing else.
#[derive(Debug, Parser)]
#[command(name = "oht", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Oht {
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Configuration file, in place of /etc/oht/agent.toml or ~/.config/oht/agent.toml.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Start the router VM in the background and wait until Tor is usable.
    Up {
        #[command(flatten)]
        options: Box<Options>,
        /// Seconds to wait.
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        wait_s: u64,
    },
    /// End everything.
    Down(Places),
    /// Show how everything is.
    Status(Places),
    /// Show what can be counted and measured, as Prometheus reads it.
    Metrics(Places),
    /// Look for what is wrong, and say what to do about it.
    Doctor {
        #[command(flatten)]
        options: Box<Options>,
    },
    /// Show the circuits that carry, or carried, the VMs' streams.
    Circuits {
        /// Only this VM's.
        vm: Option<VmName>,
        #[command(flatten)]
        places: Places,
    },
    /// Show what happens, as it happens, until interrupted.
    Events {
        /// Only what is about this VM.
        vm: Option<VmName>,
        /// The agent's log too.
        #[arg(long)]
        log: bool,
        /// End after this many events; the first says how everything is, unless a VM is named.
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        #[command(flatten)]
        places: Places,
    },
    /// Watch the VMs, their traffic and their circuits in the terminal; q ends it.
    Top(Places),
    /// VMs that reach the world through the router.
    Vm {
        #[command(subcommand)]
        what: Vm,
    },
    /// Do all of this interactively, with history and completion.
    Console(Places),
    /// Tokens, for programs and people that may do less than everything.
    Token {
        #[command(subcommand)]
        what: Token,
    },
    /// The keys of this host and its VMs: identities that expire by themselves.
    Key {
        #[command(subcommand)]
        what: Box<key::Key>,
    },
    /// Which connections of which VMs go where.
    Route {
        #[command(subcommand)]
        what: route::What,
    },
    /// Onion services of VMs.
    Onion {
        #[command(subcommand)]
        what: Box<onion::Onion>,
    },
    /// Write the man pages.
    Man {
        /// Where to; it must be there.
        directory: PathBuf,
    },
    /// Print the completions for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
enum Token {
    /// Make a token and print it. Whoever has it may use it, so keep it in a file that others cannot read. It is worth
    /// nothing once the agent has ended.
    New {
        /// It may read everything and change nothing.
        #[arg(long, required_unless_present = "vm", conflicts_with = "vm")]
        monitor: bool,
        /// It may do everything that concerns this VM, and nothing else.
        #[arg(long, value_name = "NAME")]
        vm: Option<VmName>,
        /// Hours after which it is worth nothing.
        #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=744))]
        hours: u32,
        #[command(flatten)]
        places: Places,
    },
    /// Print a token that allows less than the one in --token-file. Needs no agent.
    Narrow {
        /// Datalog that has to hold too, such as 'check if path("/metrics")': about method, path, vm and time.
        #[arg(long, value_name = "DATALOG")]
        check: String,
        #[command(flatten)]
        places: Places,
    },
    /// Make a token worthless, and those that were narrowed from it.
    Revoke {
        /// What `oht token new` called it.
        id: String,
        #[command(flatten)]
        places: Places,
    },
}

#[derive(Debug, Subcommand)]
enum Vm {
    /// Add a VM: it gets a socket for its network card.
    #[command(after_help = KINDS)]
    Add {
        /// Letters a-z, digits and hyphens.
        name: VmName,
        /// What the VM is for: kept and shown, and nothing else so far.
        #[arg(long, value_enum, default_value_t)]
        kind: Kind,
        /// Keep it in memory alone: it is gone when the agent ends or is started again.
        #[arg(long)]
        ephemeral: bool,
        #[command(flatten)]
        places: Places,
    },
    /// Remove a VM; one that runs loses its network.
    Rm {
        /// Which.
        name: VmName,
        #[command(flatten)]
        places: Places,
    },
    /// List the VMs.
    List(Places),
    /// Give a VM a fresh key and fresh circuits; its streams end, the key it had is revoked at once, and the keys of its
    /// services with it.
    NewIdentity {
        /// Which.
        name: VmName,
        #[command(flatten)]
        places: Places,
    },
    /// Take fresh circuits for new streams of a VM, or of all; streams that are open go on.
    NewCircuits {
        /// Which; all where none is named.
        name: Option<VmName>,
        #[command(flatten)]
        places: Places,
    },
    /// Print what attaches a VM: arguments for QEMU, or XML for libvirt.
    Attach(Box<attach::Attach>),
    /// Start a VM with QEMU, attached; ends when the VM does.
    Run(Box<run::Run>),
}

/// Beneath `oht vm add --help`.
const KINDS: &str = "\
Kinds, which say what a VM is for. All are served alike so far:
  application  runs the programs that somebody uses
  utility      works for other VMs: fetches their updates, builds their images, keeps their backups
  controller   is the one that the others are managed from";

/// Beneath `oht --help` and in the man page.
const EXIT_CODES: &str = "\
Exit status: 0 done; 1 failed, standard error says why and what to do; 2 the command line is wrong; 3 the agent is not
running. `oht vm run` ends with the exit status of QEMU.";

/// Where the agent is.
#[derive(Clone, Debug, Args)]
struct Places {
    /// Where the agent's sockets are.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Where the agent keeps state.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The agent's API, where it is not in the run directory: its shared socket, for example.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// A file with the token to show to the agent.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Oht {
    /// Does what was asked; returns the exit code.
    ///
    /// # Errors
    /// Says what failed and what to do; [`exit_code`] gives the code for it.
    pub async fn run(self) -> anyhow::Result<u8> {
        let (json, config) = (self.json, self.config);
        let settings = |places: Places| places.settings(config.as_deref());
        let client = |places: Places| places.client(config.as_deref());
        match self.what {
            What::Up { options, wait_s } => up::up(*options, config, wait_s, json).await?,
            What::Down(places) => {
                let client = client(places.clone())?;
                let settings = settings(places)?;
                up::down(&client, settings.run, settings.state, json).await?;
            }
            What::Status(places) => {
                let status: Status = client(places)?.get("/status").await?;
                if json { output::json(&status)? } else { output::text(&output::status(&status))? }
            }
            What::Metrics(places) => {
                let metrics = client(places)?.text("/metrics").await?;
                if json { output::json(&metrics)? } else { output::text(&metrics)? }
            }
            What::Doctor { options } => return Ok(u8::from(!doctor::doctor(*options, config, json).await?)),
            What::Circuits { vm, places } => vm::circuits(&client(places)?, vm.as_ref(), json).await?,
            What::Top(places) => top::top(&client(places)?).await?,
            What::Events { vm, log, count, places } => {
                events::follow(&client(places)?, vm.as_ref(), log, count, json).await?;
            }
            What::Vm { what } => match what {
                Vm::Add { name, kind, ephemeral, places } => {
                    vm::add(&client(places)?, NewVm { name, kind, ephemeral }, json).await?;
                }
                Vm::Rm { name, places } => vm::remove(&client(places)?, &name, json).await?,
                Vm::NewIdentity { name, places } => key::new_identity(&client(places)?, &name, json).await?,
                Vm::NewCircuits { name, places } => vm::new_circuits(&client(places)?, name.as_ref(), json).await?,
                Vm::List(places) => vm::list(&client(places)?, json).await?,
                Vm::Attach(what) => attach::attach(*what, config.as_deref(), json).await?,
                Vm::Run(what) => return run::run(*what, config.as_deref()).await,
            },
            What::Console(places) => console::console(places.given(config, json)).await?,
            What::Token { what } => match what {
                Token::New { monitor: _, vm, hours, places } => {
                    let seconds = hours * 3600;
                    let new = vm.map_or(NewToken::Monitor { seconds }, |name| NewToken::Vm { name, seconds });
                    token::mint(&client(places)?, &new, json).await?;
                }
                Token::Narrow { check, places } => {
                    let file = places.token_file.context("which token? Say it with --token-file")?;
                    token::narrow(&file, &check, json)?;
                }
                Token::Revoke { id, places } => token::revoke(&client(places)?, &id, json).await?,
            },
            What::Key { what } => what.run(&client, json).await?,
            What::Route { what } => return route::run(&client(what.places().clone())?, what, json).await,
            What::Onion { what } => what.run(client, json).await?,
            What::Man { directory } => clap_mangen::generate_to(Oht::command(), directory)?,
            What::Completions { shell } => completions(shell),
        }
        Ok(0)
    }
}

/// The exit code for an error.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<clap::Error>() {
        return 2;
    }
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::NotRunning { .. }) => 3,
        _ => 1,
    }
}

impl Places {
    /// What a console hands on to each of its commands.
    fn given(self, config: Option<PathBuf>, json: bool) -> console::Given {
        let places = [
            ("run-dir", self.run_dir),
            ("state-dir", self.state_dir),
            ("socket", self.socket),
            ("token-file", self.token_file),
        ];
        let given = |(name, path): (_, Option<PathBuf>)| path.map(|path| (name, path.display().to_string()));
        console::Given { config, json, places: places.into_iter().filter_map(given).collect() }
    }

    /// The agent: at the socket that is named, else in the run directory; else, for users who run none themselves, at
    /// the shared socket of the system's.
    fn client(self, config: Option<&Path>) -> anyhow::Result<Client> {
        let token = self.token_file.as_deref().map(token::read).transpose()?;
        let is_named = self.run_dir.is_some() || config.is_some();
        let socket = match self.socket.clone() {
            Some(socket) => socket,
            None => Some(self.clone().settings(config)?.run.api())
                .filter(|own| is_named || own.exists() || !Path::new(SHARED_SOCKET).exists())
                .unwrap_or_else(|| SHARED_SOCKET.into()),
        };
        Ok(token.into_iter().fold(Client::new(socket), Client::with_token))
    }

    fn settings(self, config: Option<&Path>) -> anyhow::Result<Settings> {
        let options = Options { run_dir: self.run_dir, state_dir: self.state_dir, ..Options::default() };
        Ok(Settings::new(options, config)?)
    }
}

fn completions(shell: Shell) {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    clap_complete::generate(shell, &mut Oht::command(), "oht", &mut std::io::stdout());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Oht::command().debug_assert();
    }

    #[test]
    fn bad_names_are_told_apart_from_good_ones_before_anything_is_asked() {
        let long = "x".repeat(300);
        for name in ["a/b", "..", "a b", long.as_str(), "-x", ""] {
            assert!(Oht::try_parse_from(["oht", "vm", "add", "--", name]).is_err(), "{name}");
        }
        assert!(Oht::try_parse_from(["oht", "vm", "add", "web", "--json", "--run-dir", "/r"]).is_ok());
        assert!(Oht::try_parse_from(["oht", "vm", "attach", "web", "--domain"]).is_err(), "of what is to be said");
    }

    #[test]
    fn a_word_that_names_no_accelerator_is_a_wrong_command_line() {
        let error = Oht::try_parse_from(["oht", "up", "--accel", "fast"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("auto, kvm or tcg"), "{error}");
        assert!(Oht::try_parse_from(["oht", "up", "--accel", "tcg"]).is_ok());
    }

    #[test]
    fn a_word_that_is_nearly_right_is_answered_with_the_right_one() {
        for (line, meant) in
            [("oht statsu", "'status'"), ("oht vm atach", "'attach'"), ("oht vm add web --ephemerl", "'--ephemeral'")]
        {
            let error = Oht::try_parse_from(line.split(' ')).unwrap_err().to_string();
            assert!(error.contains(meant), "{error}");
        }
    }

    #[test]
    fn help_alone_tells_exit_codes_and_kinds() {
        let help = |command: &mut clap::Command| command.render_long_help().to_string();
        let mut oht = Oht::command();
        assert!(help(&mut oht).contains("3 the agent is not"));
        let vm = oht.find_subcommand_mut("vm").unwrap();
        assert!(help(vm.find_subcommand_mut("add").unwrap()).contains("utility      works for"));
    }

    #[tokio::test]
    async fn what_a_vm_is_attached_to_is_to_be_said() {
        let error = Oht::parse_from(["oht", "vm", "attach", "web"]).run().await.unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("--libvirt"), "{error}");
    }

    #[tokio::test]
    async fn an_agent_that_does_not_run_has_a_code_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().to_str().unwrap();
        let error = Oht::parse_from(["oht", "vm", "list", "--run-dir", dir]).run().await.unwrap_err();
        assert_eq!(exit_code(&error), 3);
        assert!(error.to_string().contains("oht up"), "{error}");
    }
}
