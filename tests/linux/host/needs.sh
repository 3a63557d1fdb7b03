# The programs of this host that the bed is made with. Sourced by `run`.

# PROGRAM:PACKAGE, the packages being Debian's.
TOOLS=(busybox:busybox-static cpio:cpio lz4:lz4 xz:xz-utils zstd:zstd gcc:gcc readelf:binutils
  ip:iproute2 mke2fs:e2fsprogs e2fsck:e2fsprogs debugfs:e2fsprogs)
QEMU=qemu-system-x86_64

need_tools_for_the_bed() {
  command -v cargo >/dev/null || give_up "cargo is missing: install Rust (https://rustup.rs)"
  need_programs "${TOOLS[@]}"
  # A busybox that needs libraries would not find them in the emulated machine.
  if readelf -l "$(command -v busybox)" | grep -q INTERP; then need_packages busybox-static; fi
}

need_qemu() {
  need_programs "$QEMU:qemu-system-x86"
}

# Installs the packages of those programs that are missing.
need_programs() {
  local entry missing=()
  for entry in "$@"; do
    command -v "${entry%%:*}" >/dev/null || missing+=("${entry##*:}")
  done
  [ "${#missing[@]}" -eq 0 ] || need_packages "${missing[@]}"
}

need_packages() {
  local log=$CACHE/packages.log
  local way_out="install them by hand (Debian's names)"
  command -v apt-get >/dev/null || give_up "missing: $*; there is no apt-get here: $way_out"
  [ "$(id -u)" -eq 0 ] || give_up "missing: $*; run: sudo apt-get install --no-install-recommends $*"
  echo "installing $*"
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1 ||
    give_up "cannot install $*: see $log, or $way_out"
}
