# Debian's kernel boots as distributed, a bzImage, finds two CPUs by ACPI, and powers off by ACPI.
# takes: 11
# deadline: 180
. "$BED/words.sh"

boot_linux "$BED/vmlinuz" 2 inner=poweroff
wait "$vmm" || fail "vmm did not end well"
