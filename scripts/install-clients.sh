#!/usr/bin/env bash
# Installs the real clients that integration/ and bench/ drive: Debian's Bazel with its rules, a C++ compiler, a JDK,
# rustc, BuildStream with its casd, moon, and for TLS Bazel 2.1 and the netty that Debian's Bazel lacks; and root file systems of
# three releases of Debian that workers run in. Idempotent: says so and ends within a second when everything is there.
# What does not come from apt goes below .clients/ in the checkout. Works as root or through sudo.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
clients="$root/.clients"
buildstream_version=2.8.1
moon_version=2.5.5
bazel_version=2.1.0
# The release that Debian's Bazel is built against; Debian's own build of it cannot negotiate HTTP/2 over TLS (ALPN).
netty_version=4.1.48.Final
packages=(
    bazel-bootstrap bazel-platforms bazel-skylib bazel-rules-java bazel-rules-proto
    g++ openjdk-17-jdk-headless rustc
    # BuildStream's local sandbox and the small root file system of its test project.
    bubblewrap busybox-static libfuse3-3 python3-venv
    # moon wants its workspace to be a repository.
    git
    # Root file systems for workers, and the program that starts them there (bundles are stripped).
    debootstrap musl libc6-dev binutils
)

say() { printf 'install-clients: %s\n' "$*"; }
fail() { printf 'install-clients: %s\n' "$*" >&2; exit 1; }

is_installed() {
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo --preserve-env=DEBIAN_FRONTEND "$@"
    else
        fail "need root or sudo for: $*"
    fi
}

install_debian_packages() {
    local missing=() package
    for package in "${packages[@]}"; do
        is_installed "$package" || missing+=("$package")
    done
    if [ ${#missing[@]} -eq 0 ]; then
        say "Debian packages: present"
        return
    fi
    command -v apt-get >/dev/null || fail "apt-get not found; install these by hand: ${missing[*]}"
    say "Debian packages: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    mkdir -p "$clients"
    local log="$clients/apt.log"
    as_root apt-get update >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        fail "apt-get update failed; check the network and /etc/apt/sources.list"
    }
    as_root apt-get install --yes --no-install-recommends "${missing[@]}" >>"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        fail "apt-get install failed for: ${missing[*]} (Debian 12 has them all; log in $log)"
    }
    for package in "${missing[@]}"; do
        is_installed "$package" || fail "$package is still not installed after apt-get install"
    done
}

install_buildstream() {
    local environment="$clients/buildstream"
    if [ -e "$environment/complete-$buildstream_version" ]; then
        say "BuildStream $buildstream_version: present"
        return
    fi
    say "BuildStream $buildstream_version: installing below .clients/buildstream"
    rm -rf "$environment"
    mkdir -p "$clients"
    python3 -m venv "$environment" || fail "python3 -m venv $environment failed; install python3-venv"
    "$environment/bin/pip" install --quiet --disable-pip-version-check "BuildStream==$buildstream_version" \
        || fail "pip could not install BuildStream==$buildstream_version (python3 is $(python3 --version 2>&1))"
    "$environment/bin/bst" --version >/dev/null || fail "$environment/bin/bst does not start"
    # Written last, so that an interrupted installation is done again.
    : >"$environment/complete-$buildstream_version"
}

install_moon() {
    local place="$clients/moon" package="@moonrepo/core-linux-x64-gnu"
    if [ -e "$place/complete-$moon_version" ]; then
        say "moon $moon_version: present"
        return
    fi
    [ "$(uname -m)" = x86_64 ] || fail "moon is packaged for x86_64 here, and this machine is $(uname -m)"
    say "moon $moon_version: installing below .clients/moon"
    rm -rf "$place"
    mkdir -p "$place"
    # An empty project of its own, or npm would look for one further up.
    printf '{"private": true}\n' >"$place/package.json"
    npm install --prefix "$place" --no-audit --no-fund --loglevel=error "$package@$moon_version" \
        || fail "npm could not install $package@$moon_version"
    "$place/node_modules/$package/moon" --version >/dev/null || fail "$place/node_modules/$package/moon does not start"
    : >"$place/complete-$moon_version"
}

install_bazel() {
    local place="$clients/bazel-2.1" package="@bazel/bazel-linux_x64"
    if [ -e "$place/complete-$bazel_version" ]; then
        say "Bazel $bazel_version: present"
        return
    fi
    [ "$(uname -m)" = x86_64 ] || fail "this Bazel is packaged for x86_64, and this machine is $(uname -m)"
    say "Bazel $bazel_version: installing below .clients/bazel-2.1"
    rm -rf "$place"
    mkdir -p "$place"
    printf '{"private": true}\n' >"$place/package.json"
    npm install --prefix "$place" --no-audit --no-fund --loglevel=error "$package@$bazel_version" \
        || fail "npm could not install $package@$bazel_version"
    # Asked for its version it would unpack itself and start its server: that it can be run is for the tests to see.
    [ -x "$place/node_modules/$package/bazel-$bazel_version-linux-x86_64" ] || fail "$package came without its program"
    : >"$place/complete-$bazel_version"
}

install_netty() {
    local place="$clients/netty" jar="io/netty/netty-all/$netty_version/netty-all-$netty_version.jar"
    if [ -e "$place/complete-$netty_version" ]; then
        say "netty $netty_version: present"
        return
    fi
    say "netty $netty_version: installing below .clients/netty"
    rm -rf "$place"
    mkdir -p "$place"
    # A repository of its own; mirrors and proxies in the user's settings.xml count all the same.
    mvn --quiet --batch-mode -Dmaven.repo.local="$place" -Dtransitive=false \
        -Dartifact="io.netty:netty-all:$netty_version" \
        org.apache.maven.plugins:maven-dependency-plugin:3.6.1:get || fail "mvn could not get netty-all $netty_version"
    [ -e "$place/$jar" ] || fail "$place/$jar is not there after mvn ended well"
    : >"$place/complete-$netty_version"
}

# A root file system of a release of Debian, without Python. With `unpacked` what is required is there but not configured, which is
# enough to have an older or newer C library, and takes a quarter of the time.
install_root() {
    local release="$1" how="$2" root="$clients/roots/$1" mirror options=(--variant=minbase)
    if [ -e "$root.complete" ]; then
        say "root file system of $release: present"
        return
    fi
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' 'Component: main' | head -n 1)
    [ -n "$mirror" ] || fail "the sources of apt name no mirror of Debian to take a root file system of $release from"
    say "root file system of $release: installing below .clients/roots (about half a minute)"
    mkdir -p "$clients/roots"
    as_root rm -rf --one-file-system "$root"
    [ "$how" = unpacked ] && options+=(--foreign)
    # In a mount namespace of its own, so that nothing stays mounted below $root, whatever happens.
    as_root unshare --mount debootstrap "${options[@]}" "$release" "$root" "$mirror" >"$root.log" 2>&1 || {
        tail -n 20 "$root.log" >&2
        fail "debootstrap could not make a root file system of $release"
    }
    as_root sh -c "rm -rf --one-file-system '$root/debootstrap' '$root'/var/cache/apt/archives/*.deb '$root'/var/lib/apt/lists/*"
    : >"$root.complete"
}

# Any npm will do; Debian's comes with 300 packages, so it is installed only where there is none. The same with mvn.
command -v npm >/dev/null || packages+=(npm)
command -v mvn >/dev/null || packages+=(maven)

install_debian_packages
install_buildstream
install_moon
install_bazel
install_netty
install_root bookworm configured
install_root bullseye unpacked
install_root trixie unpacked
say "all clients are installed"
