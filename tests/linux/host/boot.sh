# Running the scenarios of the bed, here or in the emulated machine. Sourced by `run`.

# Says why Linux cannot run on this host's own KVM, where that is known: it would hang in the middle of booting.
need_kvm_that_runs_linux() {
  [ -w /dev/kvm ] || give_up "/dev/kvm cannot be opened here: leave out --native"
  [ ! -e /sys/module/kvm_pvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo ||
    give_up "KVM has no hardware virtualization below it here and emulates a kernel's code, not all of it: leave out --native"
}

# The emulated machine must be done by then, whatever its scenarios do.
LONGEST_RUN_S=1800
RESULTS=$CACHE/results.log
CONSOLE=$CACHE/console.log

run_natively() {
  BED=$BED WORK=$CACHE/work busybox sh "$BED/run-scenarios" 2>"$CONSOLE"
}

# The machine has two serial lines: its console, which goes to a file, and the scenarios' results. What counts is the
# last line of the results: a machine that crashed or hung has not said it.
run_emulated() {
  make_root "$CACHE/outer" "$HERE/bed/outer-init" "${OUTER_MODULES[@]}"
  bring "$CACHE/outer" "${BROUGHT[@]}"
  cp -rl "$BED" "$CACHE/outer/bed"
  archive "$CACHE/outer" "$CACHE/outer.cpio"
  boot | tee "$RESULTS" || true
  tail -1 "$RESULTS" | grep -q '^test result: ok\. ' && return
  tail -1 "$RESULTS" | grep -q '^test result: ' || say_that_it_broke_off
  return 1
}

# More memory, or guests whose vCPUs load both of its CPUs, and its kernel is found damaged after a while: a flaw of QEMU.
boot() {
  timeout --foreground --kill-after=10 "$LONGEST_RUN_S" "$QEMU" \
    -accel tcg,thread=multi -cpu max,+svm,+npt -smp 2 -m 2G \
    -nodefaults -no-user-config -no-reboot -display none \
    -kernel "$BED/vmlinuz" -initrd "$CACHE/outer.cpio" \
    -append "console=ttyS0 panic=-1 quiet" \
    -serial "file:$CONSOLE" -serial stdio </dev/null
}

say_that_it_broke_off() {
  printf '\n---- the end of %s ----\n' "$CONSOLE"
  tail -n 40 "$CONSOLE"
  printf '\ntest result: FAILED. the emulated machine broke off before its scenarios had ended\n'
}
