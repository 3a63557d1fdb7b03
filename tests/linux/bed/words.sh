# Words for scenarios: `. "$BED/words.sh"`. A scenario runs in an empty folder; of a failure, its *.log files are shown.

skip() {
    echo "$*"
    exit 77
}

fail() {
    echo "$*"
    exit 1
}

# hear TEXT FILE SECONDS PID: waits until the file has a line with the text, as long as the process lives.
hear() {
    waited=0
    until grep -q "$1" "$2" 2>/dev/null; do
        kill -0 "$4" 2>/dev/null || fail "the process that was to say '$1' in $2 has ended"
        [ "$waited" -lt "$(($3 * 5))" ] || fail "'$1' was not said in $2 within $3 s"
        waited=$((waited + 1))
        sleep 0.2
    done
}

# tours MODE: a demo guest with one vCPU, and one with two, moves there and back. `vmm demo` succeeds when every move
# ended as moved, its memory was compared and found the same, the guest's oracle found nothing wrong, and no line of its
# console is missing.
tours() {
    [ -e /dev/userfaultfd ] || case $1 in postcopy | hybrid) skip "needs /dev/userfaultfd" ;; esac
    for cpus in 1 2; do
        vmm demo --modes "$1" --cpus "$cpus" --memory 64M --load 200 >"$cpus-vcpus.log" 2>&1 ||
            fail "not all is well with $cpus vCPUs"
        grep -q '^Good: 2 moves' "$cpus-vcpus.log" || fail "with $cpus vCPUs there were not two moves"
    done
}

# boot_linux KERNEL: boots Debian's kernel, in this form, to its first program; $vmm is its process then.
# There are no ACPI tables yet to tell it that there is no clock of the PC's kind: it would look for one for nine seconds.
boot_linux() {
    vmm run --name linux --memory 256M --cpus 1 --kernel "$1" --initramfs "$BED/inner.cpio" \
        --cmdline "console=ttyS0 loglevel=6 reboot=k panic=-1 initcall_blacklist=cmos_init ${LINUX_WORDS:-}" \
        --console console.log 2>vmm.log &
    vmm=$!
    hear 'INNER INIT RUNS' console.log 150 "$vmm"
}
