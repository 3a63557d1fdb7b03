# Debian's kernel boots as distributed: a bzImage.
# deadline: 180
. "$BED/words.sh"

(boot_linux "$BED/vmlinuz" && vmm stop linux) || {
    grep -q 'its vmlinux is needed' vmm.log && skip "this vmm does not boot a bzImage"
    fail "it does not boot"
}
