#!/bin/sh
# Installs a package on a copy of this machine that nobody keeps, lets its agent run there as its own user, and removes it.
# The copy is a layer in memory over this machine's files, in namespaces of its own: mounts, processes, and a network
# that has nothing in it.
#
#   install.sh PACKAGE   prints what `oht doctor` and `oht status` say, one JSON document each, on stdout
set -eu
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
mount --rbind /dev /mnt/root/dev
mount -t proc proc /mnt/root/proc
mount -t tmpfs -o mode=755 tmpfs /mnt/root/run
mount -t tmpfs tmpfs /mnt/root/tmp
cp "$1" /mnt/root/tmp/package.deb
exec chroot /mnt/root env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root OHT_CACHE=/nowhere LANG=C.UTF-8 sh -eu <<'SH'
dpkg -i /tmp/package.deb >&2
[ "$(stat -c %U:%a /var/lib/onion-router)" = oht:700 ]
man -w oht-vm-run >/dev/null
oht doctor --json || true

# As the service starts it.
install -d -o oht -g oht -m 700 /run/onion-router
install -d -o oht -g oht -m 755 /run/onion-router-shared
as_oht="setpriv --reuid oht --regid oht --init-groups --no-new-privs --bounding-set=-all --inh-caps=-all"
$as_oht /usr/lib/onion-router/host-agent run --config /etc/oht/agent.toml \
	--run-dir /run/onion-router --state-dir /var/lib/onion-router >/tmp/agent.log 2>&1 &
agent=$!
for _ in $(seq 900); do
	oht status --json >/tmp/status 2>/dev/null && grep -q '"state": "ready"' /tmp/status && break
	kill -0 $agent || { cat /tmp/agent.log >&2; exit 1; }
	sleep 0.1
done
cat /tmp/status
# A member of the group needs no option to find it; anybody else is refused.
useradd --no-create-home --user-group --groups oht oht-member
setpriv --reuid oht-member --regid oht-member --init-groups oht vm list >&2
! setpriv --reuid nobody --regid nogroup --clear-groups oht vm list >&2
kill $agent
wait $agent
dpkg --purge onion-router >&2
[ ! -e /usr/lib/onion-router ] && [ ! -e /etc/oht ]
SH
