#!/bin/sh
# Makes a fresh Debian 12 or Ubuntu 24.04 a host of NHOP: the agent as a service, which starts once it has
# its certificate (certificates.sh). launch.py puts the variables before this; by hand, as root:
#
#   NHOP_PACKAGE=https://example.org/nhop-0.1.0-py3-none-any.whl NHOP_SHA256=0123... sh user-data.sh
#
# Everybody on the instance can read user data: no key belongs here.
set -eu

package=${NHOP_PACKAGE:?a wheel at an https URL, or nhop==VERSION}
folder=/opt/nhop

export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends ca-certificates curl nftables python3-venv

case $package in
https://*)
    downloads=$(mktemp -d)
    trap 'rm -rf -- "$downloads"' EXIT
    wheel=$downloads/$(basename -- "$package")
    curl --fail --silent --show-error --location --proto '=https' --retry 5 --output "$wheel" "$package"
    echo "${NHOP_SHA256:?of the wheel}  $wheel" | sha256sum --check --quiet
    package=$wheel
    ;;
esac
python3 -m venv "$folder"
# Words, one a package.
# shellcheck disable=SC2086
"$folder/bin/pip" install --no-cache-dir "$package" ${NHOP_ALSO:-}

"$folder/bin/nhop-agent" install --listen 0.0.0.0:7001
systemd-sysusers
systemctl daemon-reload
systemctl enable nhop-agent.service
echo "nhop: installed; the agent starts once its certificate is in /etc/nhop/tls"
