# The programs of this host that the bed is made with. Sourced by `run`.

# PROGRAM:PACKAGE, the packages being Debian's.
TOOLS=(busybox:busybox-static cpio:cpio lz4:lz4 xz:xz-utils zstd:zstd gcc:gcc readelf:binutils
  ip:iproute2 mke2fs:e2fsprogs e2fsck:e2fsprogs debugfs:e2fsprogs)

need_tools_for_the_bed() {
  command -v cargo >/dev/null || give_up "cargo is missing: install Rust (https://rustup.rs)"
  need_programs "${TOOLS[@]}"
  # A busybox that needs libraries would not find them in the emulated machine.
  if readelf -l "$(command -v busybox)" | grep -q INTERP; then need_packages busybox-static; fi
}

# The first QEMU whose emulated processors have stood the scenarios. Those before lose interrupts and take some for the
# guest's (docs/testing.md).
QEMU_SINCE=11

# $QEMU is one to run: this host's, if it is new enough; else Debian's newest for its stable release, with all of its
# libraries, below $CACHE and not installed.
need_qemu() {
  local version
  version=$(qemu-system-x86_64 --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9]*\)\..*/\1/p') || version=
  if [ "${version:-0}" -ge "$QEMU_SINCE" ]; then QEMU=(qemu-system-x86_64) && return; fi
  local root=$CACHE/qemu/root
  [ -e "$CACHE/qemu/complete" ] || fetch_qemu
  local libraries=$root/usr/lib/x86_64-linux-gnu
  QEMU=("$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$root/usr/bin/qemu-system-x86_64"
    -L "$root/usr/share/qemu" -L "$root/usr/share/seabios")
  "${QEMU[@]}" --version >/dev/null || give_up "the QEMU in $root does not run; remove $CACHE/qemu to fetch it anew"
}

QEMU_SUITE=trixie
DEBIAN=http://deb.debian.org/debian
DEBIAN_KEYS=/usr/share/keyrings/debian-archive-keyring.gpg

# With lists and a cache of its own: apt knows nothing of it afterwards, and no root is needed.
fetch_qemu() {
  local apt=$CACHE/qemu log=$CACHE/qemu.log package way_out="install QEMU $QEMU_SINCE or newer"
  command -v apt-get >/dev/null || give_up "QEMU is missing or older than $QEMU_SINCE; there is no apt-get here: $way_out"
  [ -e "$DEBIAN_KEYS" ] || need_packages debian-archive-keyring
  echo "fetching QEMU from Debian's $QEMU_SUITE-backports"
  rm -rf "$apt"
  mkdir -p "$apt"/{lists,cache/archives}/partial "$apt"/{state,root}
  : >"$apt/status"
  printf "deb [signed-by=$DEBIAN_KEYS] $DEBIAN %s main\n" "$QEMU_SUITE" "$QEMU_SUITE-backports" >"$apt/sources"
  cat >"$apt/configuration" <<END
Dir::Etc::SourceList "$apt/sources";
Dir::Etc::SourceParts "-";
Dir::State "$apt/state";
Dir::State::Lists "$apt/lists";
Dir::State::Status "$apt/status";
Dir::Cache "$apt/cache";
APT::Architecture "amd64";
APT::Install-Recommends "false";
APT::Sandbox::User "$(id -un)";
END
  {
    APT_CONFIG=$apt/configuration apt-get update &&
      APT_CONFIG=$apt/configuration apt-get install -y --download-only -t "$QEMU_SUITE-backports" qemu-system-x86 &&
      for package in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$package" "$apt/root" || return; done
  } >"$log" 2>&1 || give_up "cannot fetch QEMU: see $log, or $way_out"
  rm -rf "$apt"/{lists,cache}
  touch "$apt/complete"
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
