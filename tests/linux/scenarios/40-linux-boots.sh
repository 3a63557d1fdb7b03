# Debian's kernel boots as an ELF file, by its PVH entry, and its first program runs on.
# takes: 11
# deadline: 180
. "$BED/words.sh"

boot_linux "$BED/vmlinux" 1
hear 'inner second 2' console.log 30 "$vmm"
! grep CORRUPT console.log || fail "the guest found something wrong"
vmm stop linux
wait "$vmm" || fail "vmm did not end well"
