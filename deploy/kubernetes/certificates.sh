#!/bin/sh
# Issues a certificate for every agent of hosts.txt and for the coordinator, and puts them into secrets.
#
#   ./certificates.sh [CERTS]
#
# CERTS is the folder of the authority, which is made there where there is none yet (by default
# ~/.config/nhop/certs). Run it again to renew; then: kubectl -n nhop rollout restart statefulset nhop-agent
set -eu
umask 077

here=$(dirname -- "$0")
certs=${1:-${XDG_CONFIG_HOME:-$HOME/.config}/nhop/certs}
namespace=nhop

put() { # NAME FILE=PATH...
    name=$1
    shift
    kubectl -n "$namespace" create secret generic "$name" "$@" --dry-run=client -o yaml | kubectl apply -f -
}

[ -e "$certs/ca.key" ] || nhop-coordinator certs init --dir "$certs"
nhop-coordinator certs issue --dir "$certs" --hosts "$here/hosts.txt"
nhop-coordinator certs issue coordinator kubernetes --dir "$certs"

set -- "--from-file=ca.crt=$certs/ca.crt"
for folder in "$certs"/agents/*.nhop-agent; do
    name=$(basename -- "$folder" .nhop-agent) # of the pod
    set -- "$@" "--from-file=$name.crt=$folder/tls.crt" "--from-file=$name.key=$folder/tls.key"
done
put nhop-agent-tls "$@"

folder=$certs/coordinators/kubernetes
put nhop-coordinator-tls "--from-file=ca.crt=$folder/ca.crt" "--from-file=tls.crt=$folder/tls.crt" \
    "--from-file=tls.key=$folder/tls.key"
