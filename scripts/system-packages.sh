#!/usr/bin/env bash
# Installs the Debian packages that tests with network namespaces and programs of others need. Without root, or
# elsewhere than on Debian, it says so and ends well: those tests are then skipped with a message.
set -u
missing=()
command -v ip >/dev/null 2>&1 || missing+=(iproute2)
command -v nft >/dev/null 2>&1 || missing+=(nftables)
command -v turnserver >/dev/null 2>&1 || missing+=(coturn) # STUN and TURN, started by the tests alone
command -v openssl >/dev/null 2>&1 || missing+=(openssl)
command -v dbus-daemon >/dev/null 2>&1 || missing+=(dbus)
command -v avahi-daemon >/dev/null 2>&1 || missing+=(avahi-daemon) # multicast DNS, started by the tests alone
command -v avahi-browse >/dev/null 2>&1 || missing+=(avahi-utils)
command -v strace >/dev/null 2>&1 || missing+=(strace) # what reaches the disk before the network
command -v c++ >/dev/null 2>&1 || missing+=(g++) # torch.compile of simulations; without it they run eagerly and say so
command -v node >/dev/null 2>&1 || missing+=(nodejs) # its packages: scripts/counterparts.sh
command -v npm >/dev/null 2>&1 || missing+=(npm)
command -v go >/dev/null 2>&1 || missing+=(golang-go)
[ -d /usr/share/gocode/src/golang.org/x/mod/sumdb ] || missing+=(golang-golang-x-mod-dev) # signed notes and tree proofs
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "tests that need ${missing[*]} will be skipped: no root or no apt-get here"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" || exit 1
# Debian starts a TURN server, and announces this machine, with the packages; the tests need the programs alone
for service in coturn avahi-daemon; do
  if [[ " ${missing[*]} " == *" $service "* ]] && [ -d /run/systemd/system ]; then
    systemctl disable --now $service
  fi
done
