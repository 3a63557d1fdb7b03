# The bed: a folder that holds all that scenarios use, and the machine's file system around it. Sourced by `run`.

# For the emulated machine; what they depend on comes along. The second line is for networks between guests and hosts.
OUTER_MODULES=(kvm-amd
  veth bridge tun)
# For Linux guests.
INNER_MODULES=(virtio_mmio virtio_blk virtio_net virtio_console virtio-rng
  button evdev)

# Makes $BED, with these scenarios.
make_bed() {
  need_kernel
  build_programs
  rm -rf "$BED" && mkdir -p "$BED/scenarios" "$BED/bin"
  cp "$@" "$BED/scenarios/"
  cp "$HERE/bed/run-scenarios" "$HERE/bed/words.sh" "$BED/"
  cp "$PROGRAMS/vmm" "$PROGRAMS/migrate" "$BED/bin/"
  ln "$KERNEL/vmlinuz" "$KERNEL/vmlinux" "$BED/"
  make_root "$CACHE/inner" "$HERE/bed/inner-init" "${INNER_MODULES[@]}"
  archive "$CACHE/inner" "$BED/inner.cpio"
}

# The programs, so linked that they need nothing of the machine they run on. The flag is given for the target only, not
# in RUSTFLAGS: build scripts and the demo guest are to be built as always. To optimize them as a whole would take longer
# than all scenarios do.
PROGRAMS=$CACHE/cargo/x86_64-unknown-linux-gnu/release
build_programs() {
  (cd "$ROOT" && unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS &&
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static" \
      CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
      cargo build --release --target x86_64-unknown-linux-gnu --target-dir "$CACHE/cargo" \
      --package vmm --package migrate --bins)
}

# make_root FOLDER INIT MODULE…: the root of a machine with busybox and nothing else.
make_root() {
  local root=$1 init=$2
  shift 2
  rm -rf "$root" && mkdir -p "$root"/{bin,dev,proc,sys,run,tmp}
  cp "$(command -v busybox)" "$root/bin/busybox"
  cp "$init" "$root/init" && chmod 755 "$root/init"
  copy_modules "$root" "$@"
}

# copy_modules ROOT MODULE…: with all they depend on, which modules.dep lists in full.
copy_modules() {
  local root=$1 version modules module file
  version=$(ls "$KERNEL/lib/modules")
  modules=$KERNEL/lib/modules/$version
  shift
  mkdir -p "$root/lib/modules/$version"
  for module in "$@"; do
    for file in $(sed -n "s,^\(\(.*/\)\?$module\.ko\):\(.*\),\1\3,p" "$modules/modules.dep"); do
      (cd "$modules" && cp --parents "$file" "$root/lib/modules/$version/")
    done
    find "$root/lib/modules" -name "$module.ko" | grep -q . || give_up "Debian's kernel has no module $module"
  done
  cp "$modules"/modules.{builtin,order} "$root/lib/modules/$version/"
  busybox depmod -b "$root" "$version"
}

# Not compressed: to unpack it costs an emulated processor more than to be given it.
archive() {
  (cd "$1" && find . | cpio --quiet -o -H newc) >"$2"
}
