//! Many transfers at once, and large ones, with every byte checked.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Stage, Tests};
use crate::origin;

pub(super) const TESTS: Tests =
    &[("parallel_fetches_64", parallel_fetches_64), ("download_and_upload_64_mib", download_and_upload_64_mib)];

const LARGE_MIB: u64 = 64;
const LARGE_TIME: Duration = Duration::from_secs(240);
const MANY_TIME: Duration = Duration::from_secs(120);

fn parallel_fetches_64(stage: &mut Stage<'_>) -> Result<String> {
    stage.warm_up(&stage.a)?;
    let url = stage.url("$i.origin.test", "/");
    let command = format!(
        "rm -f p.*; for i in $(seq 64); do (wget -q -O - {url} | sha256sum >p.$i) & done; wait; cat p.* | sort | uniq -c"
    );
    let answer = stage.a.run(&command, MANY_TIME)?;
    let (time, said) = (answer.time, answer.ok()?);
    let expected = format!("64 {}", origin::sha256(&origin::page()));
    ensure!(said.trim().starts_with(&expected) && said.lines().count() == 1, "counts and hashes: {said}");
    Ok(format!("64 pages in {:.1} s", time.as_secs_f64()))
}

/// Down, then up, where the upload ends its side first and the answer must still come; VM b fetches all the while.
fn download_and_upload_64_mib(stage: &mut Stage<'_>) -> Result<String> {
    let hash = origin::file_sha256(LARGE_MIB);
    let url = stage.url("origin.test", &format!("/file/{LARGE_MIB}"));
    let port = stage.world.addresses.origin().port();
    let bytes = LARGE_MIB << 20;
    let down = format!("wget -q -O large {url} && sha256sum <large");
    let up = format!(
        "{{ printf 'POST /upload HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: {bytes}\\r\\nConnection: close\\r\\n\\r\\n'; cat large; }} \
         | nc origin.test {port}; rm large"
    );
    stage.vms().iter().try_for_each(|vm| stage.warm_up(vm))?;
    let beside =
        format!("rm -f stop; while [ ! -e stop ]; do wget -q -O /dev/null {} || exit 1; done", stage.page_url());
    let beside = stage.b.shell.begin(&beside, 2 * LARGE_TIME)?;
    let mut seen = Vec::new();
    for (what, command, expected) in [("down", down, hash.clone()), ("up", up, format!("{hash} {bytes}"))] {
        let answer = stage.a.run(&command, LARGE_TIME)?;
        seen.push(format!("{what} {:.1} MiB/s", LARGE_MIB as f64 / answer.time.as_secs_f64()));
        let said = answer.ok()?;
        ensure!(said.contains(&expected), "{what}: the hash is wrong or the answer missing: {said:?}");
    }
    stage.b.run("touch stop", LARGE_TIME)?.ok()?;
    beside.wait()?.ok().context("the other VM's fetches meanwhile")?;
    Ok(seen.join(", "))
}
