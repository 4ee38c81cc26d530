//! `churn SECONDS`: what a router lives through in a long time, in a short one.
//!
//! One VM stays and others come and go, each with a session of its own behind a link that breaks now and then. Leases
//! are taken anew, names resolved, flows opened and ended in every way that there is: by the VM, by the far end, by
//! both at once, refused, unreachable, abandoned while they open or in the middle of a transfer. VMs go away with all
//! their flows open. Between two rounds only the one VM is left and nothing is open; then the process has as many
//! descriptors as before, and its memory is looked at. Memory that grows from one quarter of the time to the next
//! ([`Verdict`]) is an error.
//!
//! Everything is real but Tor and the VMs' kernels: far ends are AF_UNIX socket pairs, and so are links.

mod far_ends;
mod machine;
mod verdict;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use mimalloc::MiMalloc;

use machine::{Failed, Machine};
use verdict::{Sample, Verdict};

/// As in the router program, whose memory it is about.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Longer than any round takes, on a machine that is busy with other things: a round that hangs is an error.
const ROUND_LIMIT: Duration = Duration::from_secs(120);
/// VMs that come and go in a round.
const PASSING: u32 = 3;

fn main() -> ExitCode {
    let Some(seconds) = std::env::args().nth(1).and_then(|word| word.parse().ok()) else {
        eprintln!("usage: churn SECONDS");
        return ExitCode::from(2);
    };
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failed::from)
        .and_then(|runtime| runtime.block_on(churn(Duration::from_secs(seconds))));
    match done {
        Ok(verdict) => {
            println!("{verdict}");
            if verdict.is_flat() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("churn: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn churn(time: Duration) -> Result<Verdict, Failed> {
    let began = Instant::now();
    let mut resident = Machine::start().await?;
    resident.quiet().await?;
    let descriptors = verdict::descriptors()?;
    let (mut samples, mut flows, mut vms) = (Vec::new(), 0, 1);
    while began.elapsed() < time || samples.len() < verdict::SAMPLES_MIN {
        let round = round(&mut resident, descriptors);
        flows += tokio::time::timeout(ROUND_LIMIT, round).await.map_err(|_| Failed::Hangs)??;
        vms += PASSING;
        samples.push(Sample::now()?);
    }
    Ok(Verdict { time: began.elapsed(), vms, flows, samples })
}

/// One round; gives how many flows it opened.
async fn round(resident: &mut Machine, descriptors: usize) -> Result<u64, Failed> {
    let mut flows = resident.use_network().await?;
    for _ in 0..PASSING {
        let mut passing = Machine::start().await?;
        flows += passing.use_network().await?;
        flows += passing.begin_transfers().await?;
    }
    resident.replace_link();
    flows += resident.use_network().await?;
    resident.lease_again().await?;
    resident.quiet().await?;
    verdict::only(descriptors).await?;
    Ok(flows)
}
