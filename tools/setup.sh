# SPDX-License-Identifier: Apache-2.0
# Sourced by ./demo and ./test: installs what the build needs (apt, idempotent) and builds a preset.

PACKAGES="g++ cmake ninja-build pkg-config python3 libfmt-dev libspdlog-dev libcli11-dev libboost1.81-dev libboost-json1.81-dev
  libpcre2-dev libicu-dev libeigen3-dev libgtest-dev libgmock-dev
  clang-format-14 libssl-dev openssl libsqlite3-dev prometheus-cpp-dev libtomlplusplus-dev
  libyaml-cpp-dev libcurl4-openssl-dev ca-certificates"
# Not needed to build or run: tests and the demo of fleets use them where they are.
OPTIONAL_PACKAGES="etcd-server"

install_packages() {
  local missing=() package
  for package in $PACKAGES; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  local sudo=""
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "missing packages: ${missing[*]}; run as root or install sudo" >&2; exit 1; }
    sudo=sudo
  fi
  echo "==> installing ${missing[*]}"
  $sudo apt-get update -q
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# For ./test and ./demo --fleet: what cannot be installed is done without.
install_optional_packages() {
  local missing=() package sudo=""
  for package in $OPTIONAL_PACKAGES; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  [ "$(id -u)" -eq 0 ] || sudo=$(command -v sudo || true)
  echo "==> installing ${missing[*]} (optional)"
  # Debian's package also starts etcd as a service, on localhost:2379; nothing here uses that one.
  { [ "$(id -u)" -eq 0 ] || [ -n "$sudo" ]; } && $sudo apt-get update -q &&
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" ||
    echo "==> going on without ${missing[*]}"
}

# build_preset PRESET [TARGET...]
build_preset() {
  local preset=$1
  shift
  echo "==> building ($preset)"
  cmake --preset "$preset" >/dev/null
  cmake --build --preset "$preset" ${@:+--target "$@"}
}
