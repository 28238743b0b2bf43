#!/usr/bin/env bash
# Installs the npm packages of tests/counterparts, for the tests against programs that are not Python: exact versions
# and digests stand in package-lock.json, no package's install script runs. Without node, npm or the registry it says
# so and ends well: those tests are then skipped with a message.
set -u
cd "$(dirname "$0")/../tests/counterparts" || exit 1
if ! command -v node >/dev/null 2>&1 || ! command -v npm >/dev/null 2>&1; then
  echo "tests against node programs will be skipped: install nodejs and npm (make system)"
  exit 0
fi
if cmp -s package-lock.json node_modules/.complete; then
  exit 0
fi
if npm ci --loglevel=error --no-progress; then
  cp package-lock.json node_modules/.complete
else
  echo "tests against node programs will be skipped: npm could not install tests/counterparts"
fi
