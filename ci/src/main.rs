//! `cargo ci …`: what checks, tests, measures and shows the project.
//!
//! | command | what it does | module |
//! | --- | --- | --- |
//! | `check` | formatting, lints, documentation, import arrows, scripts | [`check`] |
//! | `smoke` | the image without KVM and without root | [`smoke`] |
//! | `net` | a private Tor network on loopback, for work by hand | [`tor_network`] |
//! | `vm` | the VM tests | [`vm_tests`] |
//! | `bench` | the benchmarks, one JSON object a line | [`mod@bench`] |
//! | `churn` | a day of flows, leases and VMs in some minutes | [`churn`] |
//! | `picture` | draws what a benchmark printed | [`picture`] |
//! | `load` | what the benchmarks' guests run | [`load`] |
//! | `fuzz` | every fuzz target for some seconds | [`fuzz`] |
//! | `package` | the Debian package | [`package`] |
//! | `demo` | what a newcomer sees first | [`demo`] |
//!
//! This is the one program of the project that uses `anyhow` beyond `main.rs`: nobody matches on its errors, people
//! read them. Each command is a module with `Args` and `run`; a command that counts what it tried ends with a line
//! `N passed, M failed`, which `ci/test` adds up.

mod app_vm;
mod bench;
mod cache;
mod capture;
mod check;
mod churn;
mod demo;
mod dns;
mod figures;
mod fuzz;
mod load;
mod netns;
mod origin;
mod package;
mod picture;
mod processes;
mod smoke;
mod tor_network;
mod vm_tests;
mod world;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Checks, tests, measures and shows the onion router VM.
#[derive(Parser)]
#[command(name = "cargo ci", bin_name = "cargo ci", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check formatting, lints, documentation, import arrows and scripts.
    Check(check::Args),
    /// Test the image without KVM and without root.
    Smoke(smoke::Args),
    /// Start or end a private Tor network on loopback.
    Net(tor_network::Args),
    /// Run the VM tests.
    Vm(vm_tests::Args),
    /// Measure; prints one JSON object a line.
    Bench(bench::Args),
    /// See whether memory grows or descriptors leak while flows, leases and VMs come and go.
    Churn(churn::Args),
    /// Draw the figures of a benchmark, which come on stdin, as an SVG.
    Picture(picture::Args),
    /// Make load, for the benchmarks.
    #[command(hide = true)]
    Load(load::Args),
    /// Run every fuzz target for some seconds.
    Fuzz(fuzz::Args),
    /// Make the Debian package of the host's side.
    Package(package::Args),
    /// Show a virtual machine that fetches a page through the router VM and a Tor network.
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Check(args) => check::run(&args),
        Command::Smoke(args) => smoke::run(&args),
        Command::Net(args) => tor_network::run(&args),
        Command::Vm(args) => vm_tests::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Churn(args) => churn::run(&args),
        Command::Picture(args) => picture::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Package(args) => package::run(&args),
        Command::Demo(args) => demo::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo ci: {error:#}");
            ExitCode::FAILURE
        }
    }
}
