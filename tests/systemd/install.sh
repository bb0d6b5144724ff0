#!/bin/sh
# Install what the systemd tests run and what this machine lacks. Needs root and Debian.
set -eu
missing=
for pair in /lib/systemd/systemd:systemd /usr/bin/systemd-analyze:systemd \
	/usr/bin/dbus-daemon:dbus /sbin/ip:iproute2 /usr/bin/nsenter:util-linux; do
	[ -e "${pair%%:*}" ] || missing="$missing ${pair#*:}"
done
if [ -n "$missing" ]; then
	apt-get update -qq
	# shellcheck disable=SC2086  # A list of package names.
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
fi
