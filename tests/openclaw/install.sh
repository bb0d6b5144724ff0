#!/bin/sh
# Install OpenClaw, and the Node it needs, for the tests alone. Needs npm.
set -eu
version=2026.9.6
folder=${XDG_CACHE_HOME:-$HOME/.cache}/pilotfleet/openclaw
bin=$folder/node_modules/.bin
if [ -x "$bin/openclaw" ] && "$bin/node" "$bin/openclaw" --version 2>/dev/null | grep -qF "$version"; then
	exit 0
fi
mkdir -p "$folder"
npm install --prefix "$folder" --no-fund --no-audit --save-exact node@24
# By that Node: for one that is too old, npm takes an empty release of before.
PATH=$bin:$PATH npm install --prefix "$folder" --no-fund --no-audit --save-exact \
	"openclaw@$version"
"$bin/node" "$bin/openclaw" --version
