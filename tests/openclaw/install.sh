#!/bin/sh
# Install OpenClaw, and the Node it needs, for the tests alone. All of it comes from
# npm; where there is no npm, Debian's is installed to begin with, which takes root.
set -eu
version=2026.9.6
folder=${PILOTFLEET_CACHE:-$HOME/.cache/pilotfleet}/openclaw
bin=$folder/node_modules/.bin
if [ -x "$bin/openclaw" ] && "$bin/node" "$bin/openclaw" --version 2>/dev/null | grep -qF "$version"; then
	exit 0
fi
if ! command -v npm >/dev/null; then
	sudo=
	[ "$(id -u)" -eq 0 ] || sudo=sudo
	$sudo apt-get update
	# Debian's Node trusts what ca-certificates has.
	$sudo env DEBIAN_FRONTEND=noninteractive \
		apt-get install --yes --no-upgrade --no-install-recommends \
		npm ca-certificates
fi
mkdir -p "$folder"
npm install --prefix "$folder" --no-fund --no-audit --save-exact node@24 npm@11
# By that Node: for one that is too old, npm takes an empty release of before.
PATH=$bin:$PATH npm install --prefix "$folder" --no-fund --no-audit --save-exact \
	"openclaw@$version"
"$bin/node" "$bin/openclaw" --version
