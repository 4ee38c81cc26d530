#!/bin/busybox sh
# Called by udhcpc with what the lease says in its environment.
case $1 in
bound | renew)
	ifconfig "$interface" "$ip" netmask "$subnet" ${mtu:+mtu "$mtu"} up
	route del default 2>/dev/null
	route add default gw "$router" dev "$interface"
	: >/etc/resolv.conf
	for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
	echo "ip=$ip subnet=$subnet router=$router dns=$dns mtu=$mtu lease=$lease" >/tmp/lease
	;;
esac
