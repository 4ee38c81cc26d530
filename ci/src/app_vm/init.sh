#!/bin/busybox sh
# PID 1 of the application VM: without a disk it brings the NIC up by DHCP and serves the guest shell; with one it goes
# on with the Debian that is on it (debian.sh).
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /bin /sbin /usr/bin /usr/sbin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/tmp
mount -t sysfs sys /sys

network() { for module in failover net_failover virtio_net; do insmod "/modules/$module.ko"; done; }

if [ -e /modules/virtio_blk.ko ]; then
	insmod /modules/virtio_blk.ko
	until [ -b /dev/vda ]; do sleep 0.005; done
	network
	mkdir /debian
	mount -t ext4 /dev/vda /debian
	mount -t tmpfs run /debian/run
	cp -r /shell.sh /debian.sh /modules /bin/busybox /debian/run
	for dir in proc sys dev; do mount --move /$dir /debian/$dir; done
	exec switch_root /debian /run/debian.sh
fi

mount -t tmpfs -o size=80% tmp /tmp
cd /tmp || exit
. /shell.sh

lease() {
	network
	ifconfig lo 127.0.0.1 up
	ifconfig eth0 up
	until udhcpc -q -n -f -i eth0 -s /dhcp.sh -t 20 -T 1 >/tmp/.udhcpc 2>&1; do sleep 1; done
	send lease 0 /tmp/lease
}
lease &
serve
