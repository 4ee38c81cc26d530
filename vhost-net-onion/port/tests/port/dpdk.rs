//! DPDK's virtio_user as front-end and driver: the program of the environment variable `DPDK_TESTPMD`, which ci/test sets
//! (`ci/generators testpmd` brings it), or an installed one.

use std::{path::Path, process::Command};

/// Ten million in all; both rings go round many times.
const FRAMES: &str = "2500000";

#[test]
fn every_frame_comes_back_from_dpdk() {
    let Some(testpmd) = installed() else {
        eprintln!("skipped: there is no dpdk-testpmd; set DPDK_TESTPMD to what `ci/generators testpmd` prints");
        return;
    };
    let example = Path::new(env!("CARGO_BIN_EXE_oht-port")).with_file_name("examples").join("echo_check");
    if !example.exists() {
        eprintln!("skipped: examples are not built when a single test target is chosen");
        return;
    }
    for carrier in ["link", "in-process"] {
        for bytes in ["64", "1500"] {
            let output = Command::new(&example)
                .args(["--frames", FRAMES, "--bytes", bytes, "--carrier", carrier, "--testpmd", &testpmd])
                .output()
                .unwrap();
            let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{carrier}, {bytes} bytes: {said}{errors}");
            assert!(said.contains("\"lost\":0,\"corrupt\":0,\"disordered\":0"), "{said}");
        }
    }
}

fn installed() -> Option<String> {
    if let Ok(named) = std::env::var("DPDK_TESTPMD") {
        return Some(named);
    }
    let path = std::env::var_os("PATH")?;
    let programs = std::env::split_paths(&path).map(|directory| directory.join("dpdk-testpmd"));
    programs.into_iter().find(|program| program.exists()).map(|program| program.display().to_string())
}
