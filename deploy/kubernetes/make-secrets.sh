#!/usr/bin/env bash
# make-secrets.sh DIR: makes the tokens by which the parts of rexec know each other and their clients, as files in DIR, and
# DIR/secrets.yaml with the Secrets that the manifests name. Tokens that are there stay; the servers get hashes only.
#
# With --tls also an authority and a certificate of it for the names of the Services, for the overlay "large"; more names
# (of the address that clients use) follow DIR: make-secrets.sh --tls DIR rexec.example.org
#
# The access key of a bucket, two lines (id, secret) in DIR/bucket.key, becomes a Secret, too.
set -euo pipefail
umask 077

fail() { printf 'make-secrets: %s\n' "$*" >&2; exit 1; }

tls=
if [ "${1:-}" = --tls ]; then tls=1; shift; fi
[ $# -ge 1 ] || fail "expected a directory for the tokens: make-secrets.sh [--tls] DIR [NAME...]"
dir=$1; shift
mkdir -p "$dir"

# Whose token: what it may do.
declare -A rights=([front]='"front"' [autoscaler]='"operate"' [worker]='"work"' [client]='"execute"')
{
    echo "# Made by make-secrets.sh. More tables for more clients: docs/access.md."
    for name in front autoscaler worker client; do
        [ -s "$dir/$name.token" ] || openssl rand -hex 32 | tr -d '\n' >"$dir/$name.token"
        printf '\n[[token]]\nidentity = "%s"\nsha256 = "%s"\nrights = [%s]\n' \
            "$name" "$(sha256sum <"$dir/$name.token" | cut -d' ' -f1)" "${rights[$name]}"
    done
} >"$dir/tokens.new"
# One that is there may have tables of yours: it stays as long as it knows the tokens.
for name in front autoscaler worker client; do
    grep -qs "$(sha256sum <"$dir/$name.token" | cut -d' ' -f1)" "$dir/tokens.toml" || mv "$dir/tokens.new" "$dir/tokens.toml"
    [ -e "$dir/tokens.new" ] || break
done
rm -f "$dir/tokens.new"

secret() { # NAME KEY=FILE...
    printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  labels: {app.kubernetes.io/name: rexec}\ndata:\n' "$1"
    shift
    for pair in "$@"; do
        printf '  %s: %s\n' "${pair%%=*}" "$(base64 -w0 <"${pair#*=}")"
    done
}

if [ -n "$tls" ]; then
    [ -s "$dir/ca.key" ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
        -subj "/CN=rexec" -keyout "$dir/ca.key" -out "$dir/ca.crt" 2>/dev/null
    names=DNS:localhost
    for service in rexec rexec-scheduler rexec-scheduler-{0,1}.rexec-scheduler-pods rexec-cas rexec-cas-{0..7}.rexec-cas-pods; do
        names+=,DNS:$service,DNS:$service.rexec,DNS:$service.rexec.svc,DNS:$service.rexec.svc.cluster.local
    done
    for name in "$@"; do names+=,DNS:$name; done
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=rexec" \
        -keyout "$dir/tls.key" -out "$dir/tls.csr" 2>/dev/null
    openssl x509 -req -in "$dir/tls.csr" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -CAcreateserial -days 825 -out "$dir/tls.crt" \
        -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n' "$names") 2>/dev/null
    rm -f "$dir/tls.csr"
fi

{
    secret rexec-tokens "tokens.toml=$dir/tokens.toml"
    for name in front autoscaler worker; do secret "rexec-$name-token" "token=$dir/$name.token"; done
    if [ -s "$dir/tls.crt" ]; then
        secret rexec-tls "tls.crt=$dir/tls.crt" "tls.key=$dir/tls.key"
        secret rexec-authority "ca.crt=$dir/ca.crt"
    fi
    if [ -s "$dir/bucket.key" ]; then secret rexec-bucket "key=$dir/bucket.key"; fi
} >"$dir/secrets.yaml"
printf 'tokens in %s; for the cluster:  kubectl apply --namespace rexec -f %s\n' "$dir" "$dir/secrets.yaml"
printf 'for clients:  --remote_header="authorization=Bearer $(cat %s)"\n' "$dir/client.token"
