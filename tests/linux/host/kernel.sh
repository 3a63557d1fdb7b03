# Debian's cloud kernel, for the emulated machine and for the guests in it: fetched once, unpacked, never installed.
# Sourced by `run`.

KERNEL=$CACHE/kernel # vmlinuz, vmlinux, lib/modules/VERSION

# Makes $KERNEL. It is there in whole or not at all, so a run that was interrupted leaves nothing half done.
need_kernel() {
  [ -d "$KERNEL" ] && return
  local work=$CACHE/kernel.new
  rm -rf "$work" && mkdir -p "$work"
  fetch_kernel "$work"
  dpkg-deb -x "$work"/*.deb "$work"
  mv "$work"/boot/vmlinuz-* "$work/vmlinuz"
  [ -d "$work/lib/modules" ] || mv "$work/usr/lib" "$work/lib"
  prepare_modules "$work"
  take_out_vmlinux "$work/vmlinuz" >"$work/vmlinux"
  rm -rf "$work"/*.deb "$work/boot" "$work/usr"
  mv "$work" "$KERNEL"
}

# Downloads the package that linux-image-cloud-amd64 stands for today.
fetch_kernel() {
  local meta=linux-image-cloud-amd64 package log=$CACHE/kernel.log
  local way_out="set VMM_LINUX_DEB to Debian's linux-image-VERSION-cloud-amd64 package"
  command -v dpkg-deb >/dev/null || give_up "no kernel: dpkg-deb is missing, which unpacks Debian's packages: install dpkg"
  if [ -n "${VMM_LINUX_DEB:-}" ]; then
    cp "$VMM_LINUX_DEB" "$1/kernel.deb" || give_up "cannot read VMM_LINUX_DEB=$VMM_LINUX_DEB"
    return
  fi
  command -v apt-get >/dev/null || give_up "no kernel: there is no apt-get here; $way_out"
  package=$(kernel_package $meta)
  if [ -z "$package" ]; then
    apt-get update >"$log" 2>&1 || give_up "no kernel: apt-get update failed, see $log; or $way_out"
    package=$(kernel_package $meta)
  fi
  [ -n "$package" ] || give_up "no kernel: apt knows no $meta; $way_out"
  echo "fetching $package"
  # A list of packages that is too old names files that are gone.
  (cd "$1" && { apt-get download "$package" || { apt-get update && apt-get download "$package"; }; }) >"$log" 2>&1 ||
    give_up "no kernel: cannot download $package, see $log; or $way_out"
}

kernel_package() {
  apt-cache depends "$1" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1
}

# Unpacks the modules, which busybox could not, and lists what depends on what: the package leaves that to its installation.
prepare_modules() {
  find "$1/lib/modules" -name '*.ko.xz' -exec xz -dq {} +
  find "$1/lib/modules" -name '*.ko.zst' -exec zstd -dq --rm {} +
  busybox depmod -b "$1" "$(ls "$1/lib/modules")"
}

# The ELF file in a bzImage (Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length).
take_out_vmlinux() {
  local sectors offset length
  sectors=$(number_at "$1" 0x1f1 1)
  offset=$(number_at "$1" 0x248 4)
  length=$(number_at "$1" 0x24c 4)
  dd if="$1" of="$1.payload" bs=1M iflag=skip_bytes,count_bytes status=none \
    skip="$(((sectors + 1) * 512 + offset))" count="$length"
  unpack "$1.payload" || give_up "cannot take vmlinux out of $1"
  rm "$1.payload"
}

# All formats but gzip are followed by the size in four bytes.
unpack() {
  case $(od -An -tx1 -N4 "$1" | tr -d ' ') in
    02214c18) head -c -4 "$1" | lz4 -dcq ;;
    28b52ffd) head -c -4 "$1" | zstd -dcq ;;
    fd377a58) head -c -4 "$1" | xz -dcq ;;
    1f8b*) gzip -dcq <"$1" ;;
    *) return 1 ;;
  esac
}

# number_at FILE OFFSET BYTES, little-endian.
number_at() {
  od -An "-tu$3" -j "$(($2))" -N "$3" "$1" | tr -d ' '
}
