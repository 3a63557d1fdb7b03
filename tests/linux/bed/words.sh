# Words for scenarios: `. "$BED/words.sh"`. A scenario runs in an empty folder; of a failure, its *.log files are shown.

. "$BED/hosts.sh"
. "$BED/linux.sh"
. "$BED/travel.sh"

skip() {
    echo "$*"
    exit 77
}

fail() {
    echo "$*"
    exit 1
}

# hear TEXT FILE SECONDS PID [TIMES]: waits until the file has so many lines with the text, as long as the process lives.
hear() {
    waited=0
    until [ "$(grep -c "$1" "$2" 2>/dev/null)" -ge "${5:-1}" ] 2>/dev/null; do
        kill -0 "$4" 2>/dev/null || fail "the process that was to say '$1' in $2 has ended"
        [ "$waited" -lt "$(($3 * 5))" ] || fail "'$1' was not said in $2 within $3 s"
        waited=$((waited + 1))
        sleep 0.2
    done
}

# needs_a_processor: skips where the machine is emulated by a QEMU that does not stand what follows (docs/testing.md).
needs_a_processor() {
    [ -z "${EMULATED:-}" ] || skip "needs a processor that is not emulated"
}

# needs_mode MODE: skips where the host cannot do that.
needs_mode() {
    [ -e /dev/userfaultfd ] || case $1 in postcopy | hybrid) skip "needs /dev/userfaultfd" ;; esac
}

# tours MODE: a demo guest with one vCPU, and one with two, moves there and back. `vmm demo` succeeds when every move
# ended as moved, its memory was compared and found the same, the guest's oracle found nothing wrong, and no line of its
# console is missing.
tours() {
    needs_mode "$1"
    for cpus in 1 2; do
        vmm demo --modes "$1" --cpus "$cpus" --memory 64M --load 200 >"$cpus-vcpus.log" 2>&1 ||
            fail "not all is well with $cpus vCPUs"
        grep -q '^Good: 2 moves' "$cpus-vcpus.log" || fail "with $cpus vCPUs there were not two moves"
    done
}

# end_to_end FILE [NAME…]: the tests of tests/tests/FILE.rs, or those of these names, one after the other, with the programs
# of the bed. What is compiled as ignored was so because of the machine it was built on.
end_to_end() {
    file=$1
    shift
    VMM_TEST_BINARIES=$BED/bin "$BED/tests/$file" --include-ignored --test-threads 1 --exact "$@" >tests.log 2>&1 ||
        fail "not all tests have passed"
    tail -n 2 tests.log
}
