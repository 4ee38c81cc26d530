//! The smallest router VM that carries a page on the private network. Its budget is 80 MiB.
//!
//! One application VM stays up through all of it; the router VM is started smaller and smaller, until it does not get
//! ready, Tor does not become usable, or the page does not come.

use std::{borrow::Cow, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};

use super::path;
use crate::{
    app_vm::AppVm,
    figures::{Better, Figure, Samples},
    world::{
        World,
        appliance::{Appliance, said},
    },
};

const ROUTER_MEMORY: Figure = Figure {
    name: Cow::Borrowed("router_memory"),
    unit: "MiB",
    peer: "budget",
    better: Better::Lower,
    goal: Some(1.0),
};
const BUDGET_MIB: f64 = 80.0;
const SIZES_MIB: [u32; 7] = [96, 88, 80, 72, 64, 56, 48];

/// How long `oht up` waits before a size counts as too small.
const UP_S_MAX: u32 = 40;

/// How long the page may take; QEMU and the router first have to find each other again.
const PAGE_TIME_MAX: Duration = Duration::from_secs(60);

/// Tries the sizes and prints the smallest that worked.
pub(super) fn run(dir: &Path, world: &World) -> Result<()> {
    fs::create_dir_all(dir).context("cannot create a directory")?;
    let appliance = Appliance::new(dir, world)?;
    let mut vm = None;
    let mut smallest = None;
    for size in SIZES_MIB {
        let tried = carries_a_page(&appliance, size, dir, world, &mut vm);
        appliance.down();
        match tried {
            Ok(()) => {
                eprintln!("bench: {size} MiB are enough for the router VM");
                smallest = Some(size);
            }
            Err(error) => {
                eprintln!("bench: {size} MiB are not enough for the router VM: {error:#}");
                break;
            }
        }
    }
    let smallest = smallest.with_context(|| format!("not even {} MiB are enough", SIZES_MIB[0]))?;
    ROUTER_MEMORY.print(&Samples::against_budget(smallest.into(), BUDGET_MIB))
}

fn carries_a_page(
    appliance: &Appliance<'_>,
    size: u32,
    dir: &Path,
    world: &World,
    vm: &mut Option<AppVm>,
) -> Result<()> {
    let mut up = appliance.up_command()?;
    up.args(["--memory-mib", &size.to_string(), "--wait-s", &UP_S_MAX.to_string()]);
    said(up.output().context("cannot start oht")?)?;
    let vm = match vm {
        Some(vm) => vm,
        None => vm.insert(path::application_vm(appliance, dir, world)?),
    };
    path::first_page(vm, PAGE_TIME_MAX)
}
