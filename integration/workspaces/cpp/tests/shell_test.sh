#!/bin/sh
# The binary is a runfile, named relative to the workspace root in which a test starts.
set -eu
output=$("./$1")
case "$output" in
    total=[0-9]*) echo "saw $output" ;;
    *) echo "unexpected output: $output" >&2; exit 1 ;;
esac
