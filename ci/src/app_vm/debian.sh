#!/bin/sh
# PID 1 of a VM with Debian's programs: no service manager, but Debian's own DHCP client, where it is installed, which
# asks for IPv4 and IPv6 alike, and the guest shell.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs -o size=80% tmp /tmp
cd /tmp || exit
echo debian >/proc/sys/kernel/hostname
# shellcheck source=ci/src/app_vm/shell.sh
. /run/shell.sh

lease() {
	ip link set lo up
	until dhcpcd --waitip=4 eth0 >/tmp/.dhcpcd 2>&1; do sleep 1; done
	ip -brief address show dev eth0 >/tmp/lease
	send lease 0 /tmp/lease
}
command -v dhcpcd >/dev/null && lease &
serve
