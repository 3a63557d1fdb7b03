# Linux guests and their disks. Sourced by words.sh.

# boot_linux KERNEL CPUS [WORD]: boots Debian's kernel, in this form, to its first program; $vmm is its process then. With
# disk.img as its disk, if there is one, and the CPU $LINUX_CPU, if that is set. It boots on host $at with $memory;
# $devices are further words for `vmm run`, in place of the disk.
at=here memory=256M devices=
boot_linux() {
    [ ! -e disk.img ] || devices=${devices:---disk $PWD/disk.img}
    start $at vmm run $devices --cpu "${LINUX_CPU:-host}" --name linux --memory $memory --cpus "$2" --kernel "$1" \
        --initramfs "$BED/inner.cpio" --cmdline "console=ttyS0 loglevel=4 panic=-1 ${LINUX_WORDS:-} ${3:-}" \
        --console console.log 2>vmm.log
    vmm=$started
    hear "INNER INIT RUNS on .*, $2 CPUs" console.log 150 "$vmm"
}

# make_disks: disk.img with a file system, and swap.img; the guest gets both.
make_disks() {
    truncate -s 32M disk.img
    $(which mke2fs) -q -t ext4 disk.img >mke2fs.log 2>&1 || fail "mke2fs ended with $?"
    truncate -s 128M swap.img
    devices="--disk $PWD/disk.img --disk $PWD/swap.img"
}

# is_taken: no other VMM can have the guest's disk.
is_taken() {
    vmm run --name thief --memory 64M --disk "$PWD/disk.img" --kernel "$BED/vmlinuz" >thief.log 2>&1 &&
        fail "a second VMM took the guest's disk"
    grep -q 'disk.img is in use' thief.log || fail "a second VMM does not say that the disk is taken"
}

# check_disk: after the guest was ended like by a power cut, its file system is sound once the journal was replayed, and
# every record that it has told is there. $said are the guest's words.
check_disk() {
    e2fsck -p disk.img >e2fsck.log 2>&1 || [ $? -eq 1 ] || fail "the file system cannot be put in order"
    e2fsck -fn disk.img >>e2fsck.log 2>&1 || fail "the file system is damaged"
    mkdir files
    debugfs -R 'rdump / files' disk.img >debugfs.log 2>&1 || fail "the file system cannot be read"
    rm -rf files/lost+found
    told=$(sed -n 's/^inner second .*: records \(.*\) on the disk$/\1/p' $said | tail -n 1)
    witness records-check files "$told" || fail "records are not as they were told to be"
}

# check_words: what the guest has said is complete, each line of a witness once, and nothing is wrong. $said is the file,
# $witnesses are who has spoken.
check_words() {
    ! grep CORRUPT $said || fail "the guest found something wrong"
    ! grep -E 'BUG:|Oops|Call Trace|rcu.*stall' $said || fail "the guest's kernel found something wrong"
    for witness in $witnesses; do
        # The last line may be being said; grep ends it.
        sed -n "s/^inner second \([0-9]*\): $witness .*/\1/p" $said | grep . >seconds || true
        [ -s seconds ] || fail "$witness has said nothing"
        seq "$(tail -n 1 seconds)" | diff - seconds >missing || {
            head -n 20 missing
            for second in $(sed -n 's/^[-+]\([0-9][0-9]*\)$/\1/p' missing); do grep -n -C 1 "second $second: $witness" $said; done
            fail "the lines of $witness are not all there, in order, once"
        }
    done
}

# check_churn: what the guest has computed is what was computed without a guest; and it had to swap.
check_churn() {
    sed -n 's/^inner second .*: \(churn round .* digest .*\), .* swapped out$/\1/p' $said >churned
    ! grep -vxFf "$BED/churn.digests" churned || fail "the guest has computed something else than an unmoved program"
    sed -n 's/^inner second .*: \(churn .*\)$/\1/p' $said | tail -n 1 >pressed
    ! grep ' 0 pages swapped out' pressed || fail "there was no memory pressure"
    cat pressed
}
