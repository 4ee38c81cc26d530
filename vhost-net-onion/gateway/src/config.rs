//! How large everything may become, who decides, and the addresses that every VM sees.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use smoltcp::wire::EthernetAddress;

use crate::policy::{Policy, Usual};

/// The gateway's address: router, DNS and DHCP server. The same for every VM, as all of these.
pub const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// The gateway's Ethernet address, locally administered.
pub const GATEWAY_MAC: EthernetAddress = EthernetAddress([0x02, 0x6f, 0x68, 0x74, 0x00, 0x01]);

/// The address that the VM gets.
pub const VM_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Bits of the network that both are in.
pub const PREFIX_BITS: u8 = 24;

/// The gateway's IPv6 address: DNS server and the like. It is out of a unique local prefix (RFC 4193).
pub const GATEWAY_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd6f, 0x6874, 1, 0, 0, 0, 0, 2);

/// The gateway's link-local address: the router (RFC 4861, section 4.2, wants a router to speak from such a one).
pub const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The prefix out of which the VM makes its own addresses (SLAAC, RFC 4862).
pub const PREFIX_V6: Ipv6Addr = Ipv6Addr::new(0xfd6f, 0x6874, 1, 0, 0, 0, 0, 0);

/// Bits of [`PREFIX_V6`].
pub const PREFIX_BITS_V6: u8 = 64;

/// Bytes of the largest IP packet on the link.
pub const MTU: usize = 1500;

/// The bounds of one gateway, and its policy. The defaults let a router VM of 80 MiB serve several VMs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Flows in every state together.
    pub flows_max: usize,
    /// Flows whose stream is not yet open. More SYNs are not answered, so that the VM tries them again.
    pub half_open_max: usize,
    /// Connections to the VM, asked for and open, that count among the flows. Fewer than those, so that whoever calls the
    /// VM leaves it room for its own.
    pub inbound_max: usize,
    /// Of these: those that the VM has not answered.
    pub calling_max: usize,
    /// Bytes that a flow may have received and not yet given away, or have promised the VM to receive, at most.
    pub recv_bytes_max: usize,
    /// Bytes that a flow may hold for the VM, at most.
    pub send_bytes_max: usize,
    /// Bytes of all flows' buffers together: the more the flows use, the less each of them may use. At least twice
    /// 536 bytes for each of `flows_max`.
    pub buffers_bytes_max: usize,
    /// Names that have a made-up address.
    pub names_max: usize,
    /// Half of the answers (ARP, DHCP, DNS, ICMP, RST) that wait for [`crate::Gateway::poll_frame`] at most.
    pub frames_max: usize,
    /// Which names are resolved, and which SYNs answered before the far end was asked; none where nothing else is said.
    pub policy: Arc<dyn Policy>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            flows_max: 1024,
            half_open_max: 256,
            inbound_max: 256,
            calling_max: 64,
            recv_bytes_max: 256 << 10,
            send_bytes_max: 256 << 10,
            buffers_bytes_max: 16 << 20,
            names_max: 4096,
            frames_max: 256,
            policy: Arc::new(Usual),
        }
    }
}
