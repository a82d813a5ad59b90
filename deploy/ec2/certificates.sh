#!/bin/sh
# Issues a certificate for each running instance with these tags, copies it there, and starts the agent.
#
#   ./certificates.sh ec2:nhop=train [CERTS]
#
# Run it where the authority is and the instances can be reached by ssh, such as on the coordinator's machine,
# again for new instances and to renew. CERTS: the authority's folder (by default ~/.config/nhop/certs).
# NHOP_SSH: the command, such as 'ssh -i key.pem -l admin' (by default 'ssh').
set -eu
umask 077

hosts=${1:?such as ec2:nhop=train}
certs=${2:-${XDG_CONFIG_HOME:-$HOME/.config}/nhop/certs}
ssh=${NHOP_SSH:-ssh}

# On the instance, as root, with the folder's files on stdin. An agent that runs takes new files into use by
# itself.
receive='set -eu
install -d -m 700 -o nhop -g nhop /etc/nhop/tls
umask 077
runuser -u nhop -- tar -C /etc/nhop/tls --no-same-permissions -x
systemctl reset-failed nhop-agent.service || true
systemctl start nhop-agent.service'

[ -e "$certs/ca.key" ] || nhop-coordinator certs init --dir "$certs"
issued=$(nhop-coordinator certs issue --dir "$certs" --hosts "$hosts")
names=$(printf '%s\n' "$issued" | sed -n 's/^agent  *.* (\(.*\), until .*)$/\1/p')

failed=''
for host in $names; do
    # Words: the command and its options.
    # shellcheck disable=SC2086
    if tar -C "$certs/agents/$host" -c ca.crt tls.crt tls.key | $ssh "$host" "sudo sh -c '$receive'"; then
        echo "$host: has its certificate, and its agent runs"
    else
        failed="$failed $host"
    fi
done
if [ -n "$failed" ]; then
    echo "certificates.sh: failed for$failed; run it again once these can be reached and are installed" >&2
    exit 1
fi
