#!/bin/sh
# An ordinary user with an appliance and a libvirt of its own: pastes what `oht vm attach --libvirt` prints into a domain
# and starts it. Runs in namespaces of its own (mounts, processes), where libvirt is laid over /usr and what the user may
# not reach is mounted below /mnt; all of it is gone when this script ends, which is when nobody holds `alive` open.
#
#   libvirt.sh LIBVIRT PROGRAMS VSOCK-DEVICE-DIR VIRTIOFSD-DIR IMAGE NETWORK KERNEL INITRAMFS OWN
set -eu
if [ "$(id -u)" = 0 ]; then
	mount -t overlay overlay -o "lowerdir=$1/usr:/usr" /usr
	cp "$0" "$9/script" # /mnt is about to be covered, and the rest of the way may be closed to the user
	mount -t tmpfs -o mode=755 tmpfs /mnt
	for name in programs vsock virtiofsd image network kernel initramfs own; do
		shift
		if [ -d "$1" ]; then mkdir "/mnt/$name"; else : >"/mnt/$name"; fi
		mount --bind "$1" "/mnt/$name"
	done
	cd /mnt/own
	chmod 755 . script
	chown -R nobody:nogroup .
	exec setpriv --reuid nobody --regid nogroup --clear-groups --no-new-privs -- \
		env -i PATH=/mnt/programs:/usr/sbin:/usr/bin:/sbin:/bin HOME=/mnt/own XDG_RUNTIME_DIR=/mnt/own/r \
		XDG_CONFIG_HOME=/mnt/own/c XDG_STATE_HOME=/mnt/own/s XDG_CACHE_HOME=/mnt/own/h XDG_DATA_HOME=/mnt/own/d \
		LIBVIRT_DEFAULT_URI=qemu:///session sh ./script
fi

umask 077
mkdir -p r c/libvirt s h d
# Else a third daemon would keep QEMU's log.
echo 'stdio_handler = "file"' >c/libvirt/qemu.conf
oht up --image /mnt/image --tor-network /mnt/network --accel tcg \
	--programs /mnt/programs --programs /mnt/vsock --programs /mnt/virtiofsd
oht vm add lv --kind utility --ephemeral

# A whole domain: what libvirt's schema, libvirt and QEMU make of it.
cpu=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*\([0-9]*\).*/\1/p' /proc/self/status)
oht vm attach lv --libvirt --domain --memory 256 --mtu 9000 --vcpus 2 --cpus "$cpu" --accel tcg \
	--kernel /mnt/kernel --initrd /mnt/initramfs --append 'console=ttyS0 a="b<c>"' >whole.xml
virt-xml-validate whole.xml domain
virsh create --paused whole.xml
virsh vcpupin lv >pins
grep -Eq "^ *1 +$cpu\$" pins
virsh qemu-monitor-command lv --hmp info qtree >devices
grep -q 'host_mtu = 9000' devices
virsh destroy lv

# The elements, pasted into a domain that knows nothing of us.
oht vm attach lv --libvirt --mtu 4000 >parts.xml
sed -n '/<memoryBacking>/,/<\/memoryBacking>/p' parts.xml >memory.xml
sed -n '/<interface /,/<\/interface>/p' parts.xml >interface.xml
sed -n '/<qemu:override /,/<\/qemu:override>/p' parts.xml >override.xml
sed -e '/<!-- memory -->/r memory.xml' -e '/<!-- override -->/r override.xml' -e '/<!-- interface -->/r interface.xml' >pasted.xml <<'XML'
<domain type='qemu'>
  <name>lv</name>
  <memory unit='MiB'>256</memory>
  <!-- memory -->
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/mnt/kernel</kernel>
    <initrd>/mnt/initramfs</initrd>
    <cmdline>console=ttyS0 quiet no_timer_check panic=-1 random.trust_cpu=on</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <devices>
    <!-- interface -->
    <serial type='file'><source path='/mnt/own/console.log'/></serial>
    <channel type='unix'><source mode='bind' path='/mnt/own/shell'/><target type='virtio' name='shell'/></channel>
  </devices>
  <!-- override -->
</domain>
XML
virt-xml-validate pasted.xml domain
virsh create pasted.xml
virsh version >version
mv version started
read -r _ <alive || true
