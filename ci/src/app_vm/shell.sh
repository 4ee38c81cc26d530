#!/bin/sh
# The guest shell's side in the VM, sourced by init.sh and debian.sh: runs what comes in on the virtio serial port. Every
# message to the host is `TAG STATUS BYTES`, a newline, and so many bytes.
# Which number the port's device has depends on the devices before it.
port=
until [ -c "$port" ]; do
	for port in /dev/vport*p1; do :; done
	sleep 0.005
done
exec 3<>"$port"

send() { # tag status file
	head -c 30000 "$3" >"$3.cut"
	{
		printf '%s %s %s\n' "$1" "$2" "$(wc -c <"$3.cut")"
		cat "$3.cut"
	} >"$3.message"
	# One write a message, so that those of commands that run at once do not mix; the port takes 32 KiB at most.
	# (busybox's cat would use sendfile, which takes the port's splice.)
	dd if="$3.message" bs=32k 2>/dev/null >&3
	rm -f "$3.cut" "$3.message"
}

work() { # id command-in-base64
	echo "$2" | base64 -d >"/tmp/.command.$1"
	sh "/tmp/.command.$1" >"/tmp/.output.$1" 2>&1 </dev/null 3>&-
	send "$1" $? "/tmp/.output.$1"
	rm -f "/tmp/.command.$1" "/tmp/.output.$1"
}

# Never returns.
serve() {
	while :; do
		while read -r id command <&3; do work "$id" "$command" & done
		sleep 0.1 # nobody is connected to the port's other end
	done
}

cat /proc/uptime >/tmp/.boot
send boot 0 /tmp/.boot
