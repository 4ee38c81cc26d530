//! The command `oht`: what it understands, and which exit code says what.
//!
//! | exit code | meaning |
//! | --- | --- |
//! | 0 | done |
//! | 1 | failed; standard error says why and what to do |
//! | 2 | the command line is wrong |
//! | 3 | the agent is not running |

pub mod doctor;
mod onion;
pub mod output;
pub mod up;
pub mod vm;

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use wire::VmName;

use crate::{
    client::{Client, ClientError},
    config::{Options, Settings},
    status::{NewVm, Status},
};

/// The onion router VM of this host: VMs reach the world through Tor and nothing else.
#[derive(Debug, Parser)]
#[command(name = "oht", version, max_term_width = 100)]
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
    /// VMs that reach the world through the router.
    Vm {
        #[command(subcommand)]
        what: Vm,
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
enum Vm {
    /// Add a VM.
    Add {
        /// Letters a-z, digits and hyphens.
        name: VmName,
        /// Answer its connections at once, before the far end has accepted: sooner, but one that fails is reset later.
        #[arg(long)]
        optimistic: bool,
        /// Have the names that it asks for resolved, so that it sees real addresses, and at once which names do not exist.
        /// Slower; a name and a connection may see different exits.
        #[arg(long)]
        resolve: bool,
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
    /// Print what attaches a VM: arguments for QEMU, on one line.
    Attach {
        /// Which.
        name: VmName,
        /// For QEMU (so far the only kind).
        #[arg(long, required = true)]
        qemu: bool,
        /// Memory of the VM, equal to its -m.
        #[arg(long = "memory", value_name = "MIB", default_value_t = 512)]
        memory_mib: u32,
        /// Largest IP packet of the VM in bytes; guests take 1500 where nothing is said.
        #[arg(long, value_name = "BYTES")]
        mtu: Option<u16>,
        #[command(flatten)]
        places: Places,
    },
}

/// Where the agent is.
#[derive(Clone, Debug, Args)]
struct Places {
    /// Where the agent's sockets are.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Where the agent keeps state.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
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
        let client = |places: Places| settings(places).map(|settings| Client::new(settings.run.api()));
        match self.what {
            What::Up { options, wait_s } => up::up(*options, config, wait_s, json).await?,
            What::Down(places) => {
                let settings = settings(places)?;
                up::down(settings.run, settings.state, json).await?;
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
            What::Vm { what } => match what {
                Vm::Add { name, optimistic, resolve, places } => {
                    vm::add(&client(places)?, NewVm { name, optimistic, resolve }, json).await?;
                }
                Vm::Rm { name, places } => vm::remove(&client(places)?, &name, json).await?,
                Vm::List(places) => vm::list(&client(places)?, json).await?,
                Vm::Attach { name, memory_mib, mtu, places, qemu: _ } => {
                    vm::attach(&client(places)?, &name, memory_mib, mtu, json).await?;
                }
            },
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
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::NotRunning { .. }) => 3,
        _ => 1,
    }
}

impl Places {
    fn settings(self, config: Option<&std::path::Path>) -> anyhow::Result<Settings> {
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
        assert!(Oht::try_parse_from(["oht", "vm", "attach", "web"]).is_err(), "what for is to be said");
    }

    #[test]
    fn a_word_that_names_no_accelerator_is_a_wrong_command_line() {
        let error = Oht::try_parse_from(["oht", "up", "--accel", "fast"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("auto, kvm or tcg"), "{error}");
        assert!(Oht::try_parse_from(["oht", "up", "--accel", "tcg"]).is_ok());
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
