# Running the scenarios of the bed, here or in the emulated machine. Sourced by `run`.

# Says why Linux cannot run on this host's own KVM, where that is known: it would hang in the middle of booting.
need_kvm_that_runs_linux() {
  [ -w /dev/kvm ] || give_up "/dev/kvm cannot be opened here: leave out --native"
  [ ! -e /sys/module/kvm_pvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo ||
    give_up "KVM has no hardware virtualization below it here and emulates a kernel's code, not all of it: leave out --native"
}

# An emulated machine that has said nothing for so long is dead: no scenario's deadline is longer.
LONGEST_SILENCE_S=660
# Each has one CPU, and computes on one of this host's.
MOST_MACHINES=2

run_natively() {
  BED=$BED WORK=$CACHE/work busybox sh "$BED/run-scenarios" 2>"$CACHE/console.log"
}

# run_emulated SCENARIO…: all of them in emulated machines, side by side. Those that have failed there, or that it broke off in
# or before, are run once more, in a fresh one, because the emulation itself fails at times (docs/testing.md); who fails
# twice has failed. What is said at the end counts every scenario once.
run_emulated() {
  local begun=$SECONDS passed=0 failed=0 ignored=0 again=0 attempt todo=("$@") name
  declare -A failures=()
  for attempt in 1 2 3; do
    run_in_machines "${todo[@]}"
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

# run_in_machines SCENARIO…: dealt out to as many machines as this host has CPUs for, so that all are done at about the same time.
# Their results are shown as they come; of what has failed there is more to read once all are done. $OUTCOMES has what became of
# each, by name.
declare -A OUTCOMES
run_in_machines() {
  local machines index place scenario name line seconds load=()
  machines=$(($(nproc) < MOST_MACHINES ? $(nproc) : MOST_MACHINES))
  [ "$machines" -le $# ] || machines=$#
  # Those before, too, who may have been more: what they said of a scenario is not what it does now.
  rm -rf "$CACHE"/machine-*
  for index in $(seq "$machines"); do
    mkdir -p "$CACHE/machine-$index/scenarios"
    load[index]=0
  done
  # The longest first, each to the machine that has the least to do.
  while read -r seconds scenario; do
    place=1
    for index in "${!load[@]}"; do [ "${load[index]}" -ge "${load[place]}" ] || place=$index; done
    load[place]=$((load[place] + seconds))
    cp "$scenario" "$CACHE/machine-$place/scenarios/"
  done < <(for scenario in "$@"; do printf '%s %s\n' "$(takes "$scenario")" "$scenario"; done | sort -k1,1nr -k2)
  for index in "${!load[@]}"; do run_machine "$CACHE/machine-$index" & done
  trap 'kill $(jobs -p); exit 130' INT TERM
  wait
  OUTCOMES=()
  for scenario in "$@"; do
    name=${scenario##*/??-} name=${name%.sh}
    line=$(grep -ah "^test $name \.\.\. " "$CACHE"/machine-*/results.log | tail -1) || line=
    case $line in
      *' ... ok'*) OUTCOMES[$name]=ok ;;
      *' ... ignored'*) OUTCOMES[$name]=ignored ;;
      '') OUTCOMES[$name]=unreached ;;
      *) OUTCOMES[$name]=failed ;;
    esac
  done
  for index in $(seq "$machines"); do
    grep -av -e '^test ' -e '^$' "$CACHE/machine-$index/results.log" || true
    grep -aq '^test result: ' "$CACHE/machine-$index/results.log" || say_that_it_broke_off "$CACHE/machine-$index/console.log"
  done
}

# takes SCENARIO: the seconds it takes in an emulated machine, in brief, by its line `# takes: SECONDS`; few where it has none.
takes() {
  local seconds
  seconds=$(sed -n 's/^# takes: *//p' "$1")
  printf '%s' "${seconds:-5}"
}

# run_machine PLACE: the scenarios that are in that folder. The machine has two serial lines: its console, which goes to a
# file, and the scenarios' results.
run_machine() {
  local place=$1 line machine
  make_root "$place/outer" "$HERE/bed/outer-init" "${OUTER_MODULES[@]}"
  bring "$place/outer" "${BROUGHT[@]}"
  cp -rl "$BED" "$place/outer/bed"
  rm -r "$place/outer/bed/scenarios" && mv "$place/scenarios" "$place/outer/bed/"
  archive "$place/outer" "$place/outer.cpio"
  rm -rf "$place/outer"
  : >"$place/results.log"
  # Several CPUs, and the machine's own kernel panics after a while: it is interrupted in a guest's name.
  coproc EMULATED { exec "${QEMU[@]}" \
    -accel tcg,thread=multi -cpu max,+svm,+npt -smp 1 -m 8G \
    -nodefaults -no-user-config -no-reboot -display none \
    -kernel "$BED/vmlinuz" -initrd "$place/outer.cpio" \
    -append "console=ttyS0 panic=-1 quiet" \
    -serial "file:$place/console.log" -serial stdio </dev/null; }
  machine=$EMULATED_PID
  trap 'kill -KILL "$machine"; exit 130' TERM
  while IFS= read -r -t "$LONGEST_SILENCE_S" line; do
    printf '%s\n' "$line" >>"$place/results.log"
    case $line in 'test result: '*) ;; 'test '*) printf '%s\n' "$line" ;; esac
  done <&"${EMULATED[0]}"
  kill -KILL "$machine" 2>/dev/null || true
}

say_that_it_broke_off() {
  printf '\n---- the end of %s ----\n' "$1"
  tail -n 40 "$1"
  printf -- '----\nthe emulated machine broke off before its scenarios had ended\n'
}
