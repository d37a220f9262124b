#!/usr/bin/env bash
# The main job on a bundled capture: a receiver that stopped reading, seen from every side.
set -eu
tool=$(realpath "$(command -v "${1:-vsockdump}")")
cd "$(dirname "$0")/.."
capture=captures/stall-6.12.pcapng

show() {
	printf '\n$ vsockdump'
	printf ' %s' "$@"
	printf '\n'
	"$tool" "$@"
}

show -n -c 8 -r "$capture"
show conns "$capture"
show credit "$capture"
show check "$capture" --fail-on never
