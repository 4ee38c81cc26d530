//! PID 1 of the router VM: mounts, clock, the router program, and the control connection to the host agent.
//!
//! The kernel starts it as `/init` from the initramfs. It is one thread around one `poll`, and it must neither end nor
//! block: when PID 1 ends the kernel panics, and what it does not report nobody learns. So
//!
//! - [`machine`] decides: events in, actions out, no I/O, tested in simulated time;
//! - [`vm`] is the shell around it that polls, reaps and carries out the actions;
//! - [`control`] is the connection to the host agent, which comes back by itself when the agent was restarted;
//! - [`manifest`] checks the router program before it is started: when memory is short the kernel goes on with an
//!   initramfs that was unpacked only in part.
//!
//! Kernel arguments: `oht.log=FILTER` becomes the router's `RUST_LOG`; `oht.bench=bare` answers "ready" at once with
//! neither state nor router, which is what the boot benchmark compares with.
//!
//! It stays small (no async runtime, no logging framework): its pages are the VM's memory.

mod control;
mod machine;
mod manifest;
mod mounts;
mod program;
mod self_test;
mod system;
mod vm;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        // The kernel hands arguments that it does not know itself to PID 1: they are none of its business.
        _ if std::process::id() == 1 => vm::run(),
        ["--self-test"] => self_test::run(),
        _ => {
            eprintln!("guest-init is PID 1 of the router VM; anywhere else only `guest-init --self-test` works");
            ExitCode::from(2)
        }
    }
}
