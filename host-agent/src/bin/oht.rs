//! The command.

use std::process::ExitCode;

use clap::Parser;
use host_agent::cli::{Oht, exit_code};

fn main() -> ExitCode {
    let oht = Oht::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("oht: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(oht.run()) {
        Ok(code) => ExitCode::from(code),
        // A reader that has seen enough is no failure worth words.
        Err(error) if is_closed_pipe(&error) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("oht: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
