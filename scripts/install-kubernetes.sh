#!/usr/bin/env bash
# Sees to it that there is a Kubernetes API server for `make test-kubernetes`: that of KUBECONFIG, of which nothing is asked here,
# or one that scripts build (once, about seven minutes) and the tests start: REXEC_KUBERNETES_SCRIPTS names their directory, with
# build.sh, up.sh and down.sh. Idempotent. Works as root or through sudo.
set -euo pipefail

packages=(etcd-server rsync libpopt0 openssl curl)

say() { printf 'install-kubernetes: %s\n' "$*"; }
fail() { printf 'install-kubernetes: %s\n' "$*" >&2; exit 1; }

if [ -n "${KUBECONFIG:-}" ]; then
    say "the tests use the cluster of $KUBECONFIG"
    exit
fi
scripts=${REXEC_KUBERNETES_SCRIPTS:-}
[ -n "$scripts" ] || fail "set KUBECONFIG to the file of a cluster where the tests may do everything, or" \
    "REXEC_KUBERNETES_SCRIPTS to a directory with build.sh, up.sh and down.sh for one of their own"
for name in build.sh up.sh down.sh; do
    [ -e "$scripts/$name" ] || fail "there is no $scripts/$name"
done

missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    say "Debian packages: installing ${missing[*]}"
    command -v apt-get >/dev/null || fail "apt-get not found; install these by hand: ${missing[*]}"
    root=(); [ "$(id -u)" -eq 0 ] || root=(sudo)
    # Debian's etcd starts a service of its own when it is installed, which nobody here wants.
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 sh -c \
        'apt-get -q update && apt-get -q install --yes --no-install-recommends "$@"' sh "${missing[@]}" >/dev/null \
        || fail "apt-get install failed for: ${missing[*]}"
fi
say "building the API server if it is not there yet (about seven minutes)"
bash "$scripts/build.sh" || fail "$scripts/build.sh failed"
say "present"
