#!/bin/bash
# Become the first process of a small machine: systemd with the host's programs.
# Called in namespaces of its own (see machine.py). Arguments: folders that every user
# of the machine must be able to read, though a parent may be closed.
set -eu

ip link set lo up
hostname pilot-test

# Copies and empty folders in place of what services write to.
mount -t tmpfs -o mode=755 tmpfs /run
cp -a /etc /run/etc
mount --bind /run/etc /etc
mount -t tmpfs -o mode=755 tmpfs /var/lib
mount -t tmpfs -o mode=755 tmpfs /var/log
: > /etc/machine-id
systemd-machine-id-setup >/dev/null 2>&1

# Opens a closed parent, such as /root, for just the folders wanted.
number=0
for folder in "$@"; do
	number=$((number + 1))
	mkdir -p "/run/open/$number"
	mount --bind "$folder" "/run/open/$number"
done
number=0
for folder in "$@"; do
	number=$((number + 1))
	parent=/
	IFS=/ read -ra names <<<"${folder#/}"
	for name in "${names[@]}"; do
		parent="${parent%/}/$name"
		[ "$parent" = "$folder" ] && break
		if [ $(($(stat -c '0%a' "$parent") & 1)) = 0 ]; then
			mount -t tmpfs -o mode=755 tmpfs "$parent"
			break
		fi
	done
	mkdir -p "$folder"
	mount --bind "/run/open/$number" "$folder"
done

# Only services: hardware and kernel are the host's, and so is /tmp, which would be
# emptied as at every boot.
mkdir -p /run/systemd/system
rm -rf /etc/systemd/system/*.wants
for unit in systemd-tmpfiles-setup.service systemd-tmpfiles-clean.timer \
	systemd-tmpfiles-clean.service systemd-remount-fs.service systemd-modules-load.service \
	systemd-sysctl.service systemd-binfmt.service systemd-tmpfiles-setup-dev.service \
	systemd-update-utmp.service systemd-networkd.service systemd-resolved.service \
	systemd-timesyncd.service systemd-udevd.service systemd-udev-trigger.service \
	systemd-network-generator.service systemd-pcrphase.service systemd-logind.service \
	systemd-initctl.socket dev-hugepages.mount dev-mqueue.mount sys-fs-fuse-connections.mount \
	sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
	proc-sys-fs-binfmt_misc.automount; do
	ln -sf /dev/null "/run/systemd/system/$unit"
done

export container=pilot-test
exec /lib/systemd/systemd --system --unit=basic.target --log-level=warning \
	--log-target=console --show-status=no
