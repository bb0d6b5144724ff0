#!/bin/sh
# Install what the path tests run and what this machine lacks. Needs root and Debian.
set -eu
missing=
for pair in ip:iproute2 nft:nftables conntrack:conntrack sysctl:procps; do
	command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
if [ -n "$missing" ]; then
	apt-get update -qq
	# shellcheck disable=SC2086  # A list of package names.
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing
fi
