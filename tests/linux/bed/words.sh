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
