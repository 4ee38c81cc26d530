//! A typed QEMU machine: what it has, the command line or libvirt domain that says so, how it is started, asked and
//! ended.
//!
//! Two kinds of machine are made of it: the router VM, started by the host agent, and the application VMs of the tests.
//!
//! ```text
//! accel::choose ──► Accelerator ─┐
//! version::check ───► Version    ├─► Machine ─┬ command_line() ──► launch::launch ──► Running ── qmp() ──► Qmp
//! devices, memory, kernel ───────┘            └ domain_xml() ──► libvirt
//! ```
//!
//! A [`Machine`] is data and renders without touching anything, so that tests compare whole command lines. It always
//! begins with `-nodefaults -no-user-config`: what is not named is not there, above all no NIC. Memory is a memfd that
//! vhost-user back-ends can map, or is left to arguments that come from elsewhere ([`Memory::Elsewhere`]).

pub mod accel;
pub mod cpu_list;
pub mod launch;
pub mod libvirt;
pub mod machine;
pub mod qmp;
pub mod version;
mod xml;

pub use accel::{Accel, Accelerator, Decision};
pub use cpu_list::{CpuList, CpuListError};
pub use launch::{Launch, LaunchError, Running};
pub use libvirt::DomainError;
pub use machine::{Device, DiskFormat, Kernel, Machine, MachineError, Memory, Serial};
pub use qmp::{Qmp, QmpError};
pub use version::{Version, VersionError};
