# Running the scenarios of the bed, here or in the emulated machine. Sourced by `run`.

# Says why Linux cannot run on this host's own KVM, where that is known: it would hang in the middle of booting.
need_kvm_that_runs_linux() {
  [ -w /dev/kvm ] || give_up "/dev/kvm cannot be opened here: leave out --native"
  [ ! -e /sys/module/kvm_pvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo ||
    give_up "KVM has no hardware virtualization below it here and emulates a kernel's code, not all of it: leave out --native"
}

# An emulated machine must be done by then, whatever its scenarios do.
LONGEST_RUN_S=1800
RESULTS=$CACHE/results.log
CONSOLE=$CACHE/console.log

run_natively() {
  BED=$BED WORK=$CACHE/work busybox sh "$BED/run-scenarios" 2>"$CONSOLE"
}

# run_emulated SCENARIO…: all of them in one emulated machine. Those that have failed there, or that it broke off in or
# before, are run once more, in a fresh one, because the emulation itself fails at times (docs/testing.md); who fails twice
# has failed. What is said at the end counts every scenario once.
run_emulated() {
  local begun=$SECONDS passed=0 failed=0 ignored=0 again=0 attempt todo=("$@") name
  declare -A failures=()
  for attempt in 1 2 3; do
    run_in_a_machine "${todo[@]}"
    todo=()
    for name in "${!OUTCOMES[@]}"; do
      case ${OUTCOMES[$name]} in
        ok) passed=$((passed + 1)) ;;
        ignored) ignored=$((ignored + 1)) ;;
        *) [ "${OUTCOMES[$name]}" = unreached ] || failures[$name]=$((${failures[$name]:-0} + 1))
          if [ "${failures[$name]:-0}" -lt 2 ] && [ "$attempt" -lt 3 ]; then todo+=("$HERE"/scenarios/??-"$name".sh); else failed=$((failed + 1)); fi ;;
      esac
    done
    [ "${#todo[@]}" -gt 0 ] || break
    again=$((again + ${#todo[@]}))
    printf '\n%s: once more, in a fresh emulated machine\n\n' "$(printf '%s\n' "${todo[@]##*/}" | sed 's/^..-//; s/\.sh$//' | paste -sd ' ')"
  done
  local verdict=ok
  [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ] || verdict=FAILED
  [ "$again" -eq 0 ] || printf '\n%s scenarios were run more than once\n' "$again"
  printf '\ntest result: %s. %s passed; %s failed; %s ignored; finished in %s s\n' \
    "$verdict" "$passed" "$failed" "$ignored" "$((SECONDS - begun))"
  [ "$verdict" = ok ]
}

# run_in_a_machine SCENARIO…: $OUTCOMES has what became of each, by name. The machine has two serial lines: its console, which goes to a
# file, and the scenarios' results, which are shown but for the last line: of this machine only.
declare -A OUTCOMES
run_in_a_machine() {
  local scenario name line
  rm -rf "$BED/scenarios" && mkdir "$BED/scenarios" && cp "$@" "$BED/scenarios/"
  make_root "$CACHE/outer" "$HERE/bed/outer-init" "${OUTER_MODULES[@]}"
  bring "$CACHE/outer" "${BROUGHT[@]}"
  cp -rl "$BED" "$CACHE/outer/bed"
  archive "$CACHE/outer" "$CACHE/outer.cpio"
  { boot || true; } | tee "$RESULTS" | grep --line-buffered -v '^test result: ' || true
  OUTCOMES=()
  for scenario in "$@"; do
    name=${scenario##*/??-} name=${name%.sh}
    line=$(grep -a "^test $name \.\.\. " "$RESULTS" | tail -1) || line=
    case $line in
      *' ... ok'*) OUTCOMES[$name]=ok ;;
      *' ... ignored'*) OUTCOMES[$name]=ignored ;;
      '') OUTCOMES[$name]=unreached ;;
      *) OUTCOMES[$name]=failed ;;
    esac
  done
  grep -aq '^test result: ' "$RESULTS" || say_that_it_broke_off
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
  printf -- '----\nthe emulated machine broke off before its scenarios had ended\n'
}
