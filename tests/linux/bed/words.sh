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

# boot_linux KERNEL CPUS [WORD]: boots Debian's kernel, in this form, to its first program; $vmm is its process then.
# With disk.img as its disk, if there is one, and the CPU $LINUX_CPU, if that is set.
boot_linux() {
    disk=
    [ ! -e disk.img ] || disk="--disk $PWD/disk.img"
    vmm run $disk --cpu "${LINUX_CPU:-host}" --name linux --memory 256M --cpus "$2" --kernel "$1" --initramfs "$BED/inner.cpio" \
        --cmdline "console=ttyS0 loglevel=6 panic=-1 ${LINUX_WORDS:-} ${3:-}" --console console.log 2>vmm.log &
    vmm=$!
    hear "INNER INIT RUNS on .*, $2 CPUs" console.log 150 "$vmm"
}

# check_disk RECORDS: each record is on the disk, whole.
check_disk() {
    for record in $(seq "$1"); do
        yes "record $record" | head -c 4096 >wanted
        dd if=disk.img bs=4096 skip="$record" count=1 2>/dev/null | cmp - wanted || fail "record $record is not on the disk"
    done
}

# linux_moves MODE: Debian's kernel with two vCPUs and a disk moves to a second VMM and goes on there: its program found
# nothing wrong, no line of its console is missing or said twice, all of its memory was compared, and what it has written
# is on the disk, which only one of both hosts held at a time.
linux_moves() {
    [ -e /dev/userfaultfd ] || case $1 in postcopy | hybrid) skip "needs /dev/userfaultfd" ;; esac
    truncate -s 8M disk.img
    boot_linux "$BED/vmlinuz" 2
    hear 'INNER HAS disks vda, randomness virtio_rng' console.log 30 "$vmm"
    hear 'inner second 3' console.log 60 "$vmm"
    vmm receive --name there --listen 127.0.0.1:7400 --console there.log 2>receive.log &
    there=$!
    hear 'listening on' receive.log 20 "$there"
    migrate --vm linux --to 127.0.0.1:7400 --mode "$1" --max-downtime 10s --timeout 120s --verify >migrate.log 2>&1 ||
        fail "migrate ended with $?"
    wait "$vmm" || fail "the source did not end well"
    after=$(($(sed -n 's/^inner second //p' console.log | tr -d '\r' | tail -1) + 4))
    hear "inner second $after" there.log 60 "$there"
    cat console.log there.log | tr -d '\r' >both.log
    ! grep CORRUPT both.log || fail "the guest found something wrong"
    sed -n 's/^inner second //p' both.log >seconds
    seq "$(wc -l <seconds)" | cmp - seconds || fail "the console's lines are not all there, in order, once"
    vmm run --name thief --memory 64M --disk "$PWD/disk.img" --kernel "$BED/vmlinuz" >thief.log 2>&1 &&
        fail "a second VMM took the guest's disk"
    grep -q disk.img thief.log || fail "a second VMM does not say that the disk is taken"
    vmm stop there
    wait "$there" || fail "the destination did not end well"
    check_disk "$(wc -l <seconds)"
}
