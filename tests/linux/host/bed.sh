# The bed: a folder that holds all that scenarios use, and the machine's file system around it. Sourced by `run`.

# For the emulated machine; what they depend on comes along. The second line is for networks between guests and hosts.
OUTER_MODULES=(kvm-amd
  veth bridge tun)
# Programs that scenarios use, of this host also in the emulated machine.
BROUGHT=(ip mke2fs e2fsck debugfs)
# For Linux guests.
INNER_MODULES=(virtio_mmio virtio_blk virtio_net virtio_console virtio-rng
  button evdev)

# Makes $BED, with these scenarios.
make_bed() {
  need_kernel
  build_programs
  rm -rf "$BED" && mkdir -p "$BED/scenarios" "$BED/bin"
  cp "$@" "$BED/scenarios/"
  cp "$HERE/bed/run-scenarios" "$HERE"/bed/*.sh "$BED/"
  cp "$PROGRAMS"/{vmm,migrate,witness} "$BED/bin/"
  cp -r "$CACHE/tests" "$BED/tests"
  "$PROGRAMS/witness" churn-digests "$CHURN_ROUNDS" >"$BED/churn.digests"
  ln "$KERNEL/vmlinuz" "$KERNEL/vmlinux" "$BED/"
  make_root "$CACHE/inner" "$HERE/bed/inner-init" "${INNER_MODULES[@]}"
  cp "$PROGRAMS/witness" "$CACHE/inner/bin/"
  archive "$CACHE/inner" "$BED/inner.cpio"
  [ "$BRIEF" = no ] || touch "$BED/brief"
}

# More than a guest does in all of its scenario.
CHURN_ROUNDS=5000

# The programs, so linked that they need nothing of the machine they run on. The flag is given for the target only, not
# in RUSTFLAGS: build scripts and the demo guest are to be built as always. To optimize them as a whole would take longer
# than all scenarios do.
PROGRAMS=$CACHE/cargo/x86_64-unknown-linux-gnu/release
# The demo guest's end-to-end tests that run in the bed as well: their programs go to tests/ in it.
TESTS=(disks failures moves)
build_programs() {
  local built=$CACHE/built.json name path
  (cd "$ROOT" && unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS &&
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static" \
      CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
      cargo build --release --target x86_64-unknown-linux-gnu --target-dir "$CACHE/cargo" \
      --package vmm --package migrate --package tests --bins "${TESTS[@]/#/--test=}" \
      --message-format json-render-diagnostics) >"$built"
  rm -rf "$CACHE/tests" && mkdir "$CACHE/tests"
  while read -r name path; do
    cp "$path" "$CACHE/tests/$name"
  done < <(sed -n 's/.*"kind":\["test"\].*"name":"\([a-z]*\)".*"executable":"\([^"]*\)".*/\1 \2/p' "$built")
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

# bring ROOT PROGRAM…: programs of this host with the libraries they need.
bring() {
  local root=$1 program file
  shift
  mkdir -p "$root/usr/sbin"
  for program in "$@"; do
    cp "$(command -v "$program")" "$root/usr/sbin/"
    for file in $(ldd "$(command -v "$program")" | grep -o '/[^ )]*'); do
      (cd / && cp -Ln --parents ".$file" "$root/")
    done
  done
}

# Not compressed: to unpack it costs an emulated processor more than to be given it.
archive() {
  (cd "$1" && find . | cpio --quiet -o -H newc) >"$2"
}
