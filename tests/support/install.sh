#!/bin/sh
# Install what some tests run and what this machine lacks. Needs root and Debian.
# Arguments: pairs "program:package"; a program is a name or a path.
set -eu
missing=
for pair; do
	command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
[ -n "$missing" ] || exit 0
# A package may bring a service: it is wanted as a program here, not running.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	trap 'rm -f $policy' EXIT
	trap 'exit 130' INT TERM
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
fi
apt-get update -qq
# shellcheck disable=SC2086  # A list of package names.
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
# Nor at the next start of the machine.
for package in $missing; do
	unit=/lib/systemd/system/$package.service
	[ ! -e "$unit" ] || systemctl --quiet disable "$package.service" || true
done
