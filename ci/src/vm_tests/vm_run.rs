//! `oht vm run`: the VM has the router's network and no other, its end is the command's, and an ephemeral one leaves
//! nothing.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{Stage, Tests};
use crate::{
    app_vm::{MEMORY_MIB, Shell, shell_socket},
    cache, origin,
    processes::{Lifetime, Plan, Process},
};

pub(super) const TESTS: Tests = &[("vm_run_attaches_a_vm_and_removes_it", vm_run_attaches_a_vm_and_removes_it)];

const VM: &str = "passing";
const MINUTE: Duration = Duration::from_secs(60);

fn vm_run_attaches_a_vm_and_removes_it(stage: &mut Stage<'_>) -> Result<String> {
    let socket = shell_socket(&stage.dir, VM);
    let _ = fs::remove_file(&socket);
    let shell = format!("socket,id=shell,server=on,wait=off,path={}", socket.display());
    let (kernel, initrd) = (cache::cloud_kernel()?, stage.dir.join("app-vm.cpio"));
    let console = format!("file:{}", stage.dir.join("passing.console.log").display());
    let (kernel, initrd) = (kernel.display().to_string(), initrd.display().to_string());
    let append = "console=ttyS0 quiet no_timer_check panic=-1 random.trust_cpu=on";
    let mut arguments = vec!["-kernel", &kernel, "-initrd", &initrd, "-append", append, "-serial", &console];
    arguments.extend(["-chardev", &shell, "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=shell"]);
    let mut oht = start(stage, &arguments)?;
    let shell = Shell::connect(&socket, || oht.failure().map_or(Ok(()), Err))?;
    shell.event("lease", Instant::now() + 2 * MINUTE).with_context(|| format!("oht said: {}", oht.last_words()))?;
    let nics = shell.run("ls /sys/class/net", MINUTE)?.ok()?;
    ensure!(nics.split_whitespace().collect::<Vec<_>>() == ["eth0", "lo"], "the VM has the NICs {nics}");
    let command = format!(
        "for i in 1 2 3 4 5 6 7 8; do timeout 20 wget -q -O page {} && break; sleep 1; done; sha256sum <page",
        stage.page_url()
    );
    let page = shell.run(&command, 2 * MINUTE)?.ok()?;
    ensure!(page.starts_with(&origin::sha256(&origin::page())), "the page is not the origin's: {page}");
    let listed = stage.appliance.oht(&["vm", "list"])?;
    let vm = listed.as_array().into_iter().flatten().find(|vm| vm["name"] == VM).context("it is not in the list")?;
    ensure!(vm["ephemeral"] == true && vm["kind"] == "utility", "the list says {vm}");
    let kept = fs::read_to_string(stage.appliance.state_dir().join("vms.json"))?;
    ensure!(!kept.contains(VM), "what is ephemeral stands in {kept}");

    let ended = Instant::now();
    oht.terminate();
    let code = code(&mut oht)?;
    ensure!(code == Some(0), "after SIGTERM the command ended with {code:?}: {}", oht.last_words());
    gone(stage)?;
    let took = ended.elapsed();
    // How QEMU ends is how the command ends, and the VM is gone then too.
    let mut refused = start(stage, &["-no-such-option"])?;
    ensure!(self::code(&mut refused)? == Some(1), "an option that is none: {}", refused.last_words());
    gone(stage)?;
    Ok(format!("page fetched; after SIGTERM all was gone within {} ms", took.as_millis()))
}

fn start(stage: &Stage<'_>, arguments: &[&str]) -> Result<Process> {
    let (oht, run_dir) = (cache::program("oht")?, stage.appliance.run_dir().display().to_string());
    let memory = MEMORY_MIB.to_string();
    let own = ["vm", "run", VM, "--ephemeral", "--kind", "utility", "--memory", &memory, "--run-dir", &run_dir, "--"];
    let plan = Plan {
        name: "vm-run".into(),
        argv: [oht.display().to_string()]
            .into_iter()
            .chain(own.iter().chain(arguments).map(|&word| word.to_owned()))
            .collect(),
        log: stage.dir.join("vm-run.log"),
        netns: stage.world.host(),
        lifetime: Lifetime::Ours,
        ledger: stage.dir.clone(),
    };
    plan.spawn()
}

fn code(process: &mut Process) -> Result<Option<i32>> {
    let end = Instant::now() + MINUTE;
    loop {
        if let Some(status) = process.exited() {
            return Ok(status.code());
        }
        ensure!(Instant::now() < end, "`oht vm run` does not end: {}", process.last_words());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn gone(stage: &Stage<'_>) -> Result<()> {
    let listed = stage.appliance.oht(&["vm", "list"])?.to_string();
    ensure!(!listed.contains(VM), "the list still says {listed}");
    let left = stage.appliance.run_dir().join("vm").join(VM);
    ensure!(!left.exists(), "{} is still there", left.display());
    Ok(())
}
