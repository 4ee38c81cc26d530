//! What the gateway counts. All numbers only grow.

/// Counts of one gateway since it was made. Whatever is dropped or refused is in one of them, by its reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames from the VM.
    pub frames_in: u64,
    /// Frames to the VM.
    pub frames_out: u64,

    /// Dropped: headers that are too short, contradict themselves or mean nothing.
    pub dropped_malformed: u64,
    /// Dropped: a checksum of IP, TCP, UDP or ICMP is wrong.
    pub dropped_checksum: u64,
    /// Dropped: a fragment. Nothing the gateway serves needs fragments on a link of its own MTU.
    pub dropped_fragment: u64,
    /// Dropped: IPv6 whose extension headers are unknown, too many, or ask for what the gateway does not do.
    pub dropped_extension: u64,
    /// Dropped: neither ARP nor IP.
    pub dropped_ethertype: u64,
    /// Dropped: not from one of the VM's addresses, or from a group's Ethernet address.
    pub dropped_source: u64,
    /// Dropped: to an Ethernet address that is not the gateway's, to a group, to loopback, to a reserved address, or to
    /// one host by way of a group's Ethernet address.
    pub dropped_destination: u64,
    /// Dropped: ICMP that asks for nothing and is not about a segment on its way.
    pub dropped_icmp: u64,
    /// Ignored: what the VM tells of the groups that it listens to (MLD, IGMP).
    pub ignored_listener: u64,
    /// Not sent: an answer for which the queue to the VM had no room.
    pub dropped_queue_full: u64,
    /// Not sent: an ICMP error beyond the rate limit.
    pub dropped_icmp_limit: u64,

    /// ARP requests sent: where the VM is.
    pub arp_requests: u64,
    /// ARP requests answered.
    pub arp_replies: u64,
    /// Neighbour solicitations answered (IPv6's ARP).
    pub neighbour_advertisements: u64,
    /// Router advertisements, asked for or not.
    pub router_advertisements: u64,
    /// DHCP offers and acknowledgements.
    pub dhcp_replies: u64,
    /// DHCP refusals of an address that is not the VM's.
    pub dhcp_naks: u64,
    /// Times that the VM gave its address back.
    pub dhcp_releases: u64,
    /// Times that the VM found its address in use by somebody else.
    pub dhcp_declines: u64,
    /// DHCP messages that were ignored: for another server, or none of a client's.
    pub dhcp_ignored: u64,
    /// Echo requests answered.
    pub echo_replies: u64,
    /// ICMP and ICMPv6 destination unreachable messages.
    pub unreachables: u64,
    /// ICMPv6 parameter problems.
    pub parameter_problems: u64,

    /// DNS queries answered, with whatever response code.
    pub dns_replies: u64,
    /// DNS messages that were no query at all.
    pub dns_ignored: u64,
    /// Names forgotten to make room for others.
    pub names_evicted: u64,
    /// Of these: names whose addresses the VM may still have had in a cache.
    pub names_evicted_early: u64,
    /// Queries that failed because every remembered name has an open flow.
    pub names_full: u64,

    /// NTP requests answered.
    pub ntp_replies: u64,
    /// Requests of the time protocol (RFC 868) answered.
    pub time_replies: u64,
    /// NTP that asks for nothing, and requests of the time protocol while the time is not known.
    pub time_ignored: u64,
    /// Datagrams refused because nothing serves their address and port.
    pub refused_udp: u64,

    /// Connections to the gateway's own services: DNS over TCP, proxies.
    pub services_begun: u64,
    /// Of these: ended to make room for others.
    pub services_evicted: u64,
    /// Of these: ended because of what they asked for, or once it was answered.
    pub services_ended: u64,

    /// Questions of the VM about itself.
    pub asks: u64,
    /// Refused: such questions beyond the rate limit, or beyond those that may wait.
    pub asks_refused: u64,

    /// Flows begun: SYNs that became an [`crate::Event::Connect`].
    pub flows_begun: u64,
    /// Flows whose far end accepted.
    pub flows_connected: u64,
    /// Flows whose far end refused, was unreachable, or did not answer.
    pub flows_failed: u64,
    /// Flows ended to make room for others.
    pub flows_evicted: u64,
    /// Flows ended because the VM rejected a segment, as firewalls do: a hard error of ICMP.
    pub flows_rejected: u64,
    /// Flows ended because the VM did not answer for a long time, or left them half-closed and idle.
    pub flows_expired: u64,
    /// SYNs refused because every flow is waiting for its far end.
    pub refused_flows_full: u64,
    /// SYNs not answered because too many flows wait for their far end.
    pub ignored_half_open: u64,
    /// Connections to the VM begun.
    pub inbound_begun: u64,
    /// Of these: accepted by the VM.
    pub inbound_accepted: u64,
    /// Of these: refused by the VM.
    pub inbound_refused: u64,
    /// Of these: not answered by the VM.
    pub inbound_timed_out: u64,
    /// Connections to the VM that were not begun, as there were too many.
    pub inbound_limited: u64,
    /// RST segments to the VM.
    pub resets: u64,

    /// Bytes of TCP that came from the VM, each counted once.
    pub bytes_from_vm: u64,
    /// Bytes of TCP that the VM has acknowledged.
    pub bytes_to_vm: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Losses noticed by duplicate acknowledgements.
    pub fast_retransmits: u64,
    /// Losses noticed by a timeout.
    pub timeouts: u64,
    /// Probes of a window that the VM has closed.
    pub window_probes: u64,
    /// Times that segments became smaller, as ICMP said that they were too large.
    pub mss_lowered: u64,
    /// Not acted on: ICMP errors about segments that may pass (soft ones), or that nothing follows from.
    pub icmp_soft: u64,
    /// Segments that came again.
    pub duplicates: u64,
    /// Segments that came before others that were missing, and were kept.
    pub out_of_order: u64,
    /// Dropped: segments that came before others that were missing, beyond what is kept.
    pub dropped_out_of_order: u64,
    /// Dropped: segments of a flow with numbers outside of its windows, or without an acknowledgement.
    pub dropped_unacceptable: u64,
    /// Acknowledgements that challenge a suspicious segment (RFC 5961).
    pub challenges: u64,
    /// Not sent: a challenge beyond the rate limit.
    pub challenges_limited: u64,
}

impl Counters {
    /// What was dropped, refused or given up, by reason.
    #[must_use]
    pub fn drops(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("malformed", self.dropped_malformed),
            ("checksum", self.dropped_checksum),
            ("fragment", self.dropped_fragment),
            ("extension", self.dropped_extension),
            ("ethertype", self.dropped_ethertype),
            ("source", self.dropped_source),
            ("destination", self.dropped_destination),
            ("icmp", self.dropped_icmp),
            ("icmp_soft", self.icmp_soft),
            ("queue_full", self.dropped_queue_full),
            ("icmp_limit", self.dropped_icmp_limit),
            ("names_evicted", self.names_evicted),
            ("names_full", self.names_full),
            ("asks", self.asks_refused),
            ("flows_failed", self.flows_failed),
            ("flows_evicted", self.flows_evicted),
            ("flows_rejected", self.flows_rejected),
            ("flows_expired", self.flows_expired),
            ("flows_full", self.refused_flows_full),
            ("half_open", self.ignored_half_open),
            ("inbound_refused", self.inbound_refused),
            ("inbound_timed_out", self.inbound_timed_out),
            ("inbound_limited", self.inbound_limited),
            ("duplicates", self.duplicates),
            ("out_of_order", self.dropped_out_of_order),
            ("unacceptable", self.dropped_unacceptable),
            ("challenges_limit", self.challenges_limited),
        ]
    }
}
