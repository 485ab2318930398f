#!/bin/sh
# agent-bundle.sh DIR: makes the self-contained worker agent in DIR, which must be new or an earlier one.
#
# DIR holds the interpreter, what `rexec worker` imports, every shared library of these and the C library with its loader.
# It runs in any Linux root file system of this machine's architecture, whatever C library that has or has not, for any user,
# from any path, read-only:
#
#     DIR/run worker --server grpc://HOST:PORT --work-dir WRITABLE ...
#
# is what `rexec worker ...` is elsewhere; DIR/run takes every other command of rexec that needs no more than that one.
# A pod brings it into an image of the user's own with an init container and an emptyDir that both containers mount:
#
#     init container   image: rexec-agent (deploy/docker), command: ["rexec", "copy-agent", "/rexec/agent"]
#     container        image: the user's, command: ["/rexec/agent/run", "worker", "--server", ..., "--work-dir", "/rexec/work", ...]
#
# Needs the virtual environment that `make venv` makes (or PYTHON with rexec installed), a C compiler with a static libc
# (Debian: gcc libc6-dev) and strip (binutils).
set -eu
[ $# = 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
exec "${PYTHON:-$(dirname "$0")/../.venv/bin/python}" -m rexec.agent_bundle "$1"
