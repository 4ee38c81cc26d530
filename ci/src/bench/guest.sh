#!/bin/busybox sh
# PID 1 of a benchmark's guest, whose root is the host's file system, read only: sets up the NIC, then runs the lines
# that come on the console. After each one's output comes a line of its own: "guest-done STATUS".
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs tmp /mnt
export TMPDIR=/mnt PATH=/usr/bin:/bin
exec 2>&1
/bin/busybox stty -echo
(
	set -e
	/bin/busybox ip link set lo up
	/bin/busybox ip link set eth0 mtu "$GUEST_MTU" up
	/bin/busybox ip addr add 10.0.2.15/24 dev eth0
	/bin/busybox ip route add default via 10.0.2.2
)
echo "guest-done $?"
while read -r line; do
	(eval "$line") </dev/null
	echo "guest-done $?"
done
/bin/busybox poweroff -f
