#!/usr/bin/env bash
# Installs the Debian packages that tests with network namespaces need. Without root, or elsewhere than on
# Debian, it says so and ends well: those tests are then skipped with a message.
set -u
missing=()
command -v ip >/dev/null 2>&1 || missing+=(iproute2)
command -v nft >/dev/null 2>&1 || missing+=(nftables)
command -v turnserver >/dev/null 2>&1 || missing+=(coturn) # STUN and TURN, started by the tests alone
command -v openssl >/dev/null 2>&1 || missing+=(openssl)
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "tests that need ${missing[*]} will be skipped: no root or no apt-get here"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" || exit 1
# Debian starts a TURN server for everybody with the package; the tests need the program alone
if [[ " ${missing[*]} " == *" coturn "* ]] && [ -d /run/systemd/system ]; then
  systemctl disable --now coturn
fi
