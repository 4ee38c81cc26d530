#!/bin/sh
# Makes a Debian guest the peer's gateway, as Whonix has it: eth0 is outward, eth1 inward. All TCP that comes from inside
# goes to tor's TransPort and all questions for names to its DNSPort; nothing is forwarded, and tor alone may go out.
# Run by the guest shell, with NOW and TORRC set.
set -eu
modules=$(cat /run/modules/more)
for module in $modules; do /run/busybox insmod "/run/modules/$module.ko"; done
date -s "@$NOW" >/dev/null
ip link set lo up
ip address add 10.19.1.2/24 dev eth0
ip link set eth0 up
ip route add default via 10.19.1.1
ip address add 10.152.152.10/18 dev eth1
ip link set eth1 up

nft -f - <<-'RULES'
	table ip gateway {
		chain prerouting {
			type nat hook prerouting priority dstnat; policy accept;
			iifname "eth1" meta l4proto tcp redirect to :9040
			iifname "eth1" udp dport 53 redirect to :5300
		}
		chain input {
			type filter hook input priority filter; policy drop;
			ct state established accept
			iifname "lo" accept
			iifname "eth1" tcp dport 9040 accept
			iifname "eth1" udp dport 5300 accept
			iifname "eth1" udp dport 67 accept
		}
		chain forward {
			type filter hook forward priority filter; policy drop;
		}
		chain output {
			type filter hook output priority filter; policy drop;
			ct state established accept
			oifname "lo" accept
			oifname "eth0" meta skuid "debian-tor" accept
		}
	}
RULES

# A Whonix-Workstation has a fixed address; the application VM, which is the same on both sides, asks for it.
cat >/tmp/udhcpd.conf <<-'CONF'
	interface eth1
	start 10.152.152.11
	end 10.152.152.11
	option subnet 255.255.192.0
	option router 10.152.152.10
	option dns 10.152.152.10
	lease_file /tmp/udhcpd.leases
	pidfile /tmp/udhcpd.pid
CONF
touch /tmp/udhcpd.leases
/run/busybox udhcpd /tmp/udhcpd.conf

printf '%s' "$TORRC" >/etc/tor/torrc
setsid tor -f /etc/tor/torrc --User debian-tor --DataDirectory /var/lib/tor --Log "notice stdout" --SocksPort 0 \
	--TransPort 10.152.152.10:9040 --DNSPort 10.152.152.10:5300 \
	--VirtualAddrNetworkIPv4 10.192.0.0/10 --AutomapHostsOnResolve 1 >/tmp/tor.log 2>&1 &
until grep -q "Bootstrapped 100%" /tmp/tor.log; do
	kill -0 $! || { tail -n 5 /tmp/tor.log; exit 1; }
	sleep 0.2
done
