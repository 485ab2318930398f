#!/bin/sh
# make-venv.sh DIR REQUIREMENT: a virtual environment in DIR with REQUIREMENT installed in it (editable, with pip).
# Debian's python3 comes without venv; then its package is installed, as root or through sudo.
set -eu
dir=$1
requirement=$2
python=${PYTHON:-python3}

command -v "$python" > /dev/null || { echo "no $python here; install it: apt-get install python3" >&2; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "$python is $("$python" --version 2>&1); rexec needs Python 3.11 or newer (make PYTHON=/path/to/python3.11 ...)" >&2
    exit 1
}
if ! "$python" -c 'import ensurepip, venv' 2> /dev/null; then
    if [ "$(id -u)" = 0 ]; then as_root=""; else as_root=sudo; fi
    command -v apt-get > /dev/null || { echo "$python lacks the venv module; install your system's package for it" >&2; exit 1; }
    echo "installing python3-venv, which $python needs to make $dir"
    $as_root apt-get update -q > /dev/null
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
        "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" > /dev/null
fi
[ -x "$dir/bin/pip" ] || { echo "making $dir"; "$python" -m venv --clear "$dir"; }
echo "installing $requirement and what it needs into $dir (about half a minute the first time)"
"$dir/bin/pip" install --quiet --disable-pip-version-check --editable "$requirement"
