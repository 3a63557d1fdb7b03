# A Linux guest with witnesses on its way between two hosts. Sourced by words.sh.
#
# At station N (0 is where it booted) it has the console said-N.log; report-N.json is of the move to there.

# boards WITNESS[:ARGUMENT],…: it boots on A. $witnesses are their names then.
boards() {
    witnesses=$(echo "$1" | tr , '\n' | sed 's/:.*//; s/pressure/churn/; s/stream-serve/stream/')
    at=A station=0 memory=${room:-96M}
    ln -s said-0.log console.log
    boot_linux "$BED/vmlinuz" "$cpus" "witness=$1"
}
cpus=1

# set_out WITNESS[:ARGUMENT],…: the same, and all witnesses speak.
set_out() {
    boards "$1"
    goes_on
}

# goes_on: every witness speaks here, more than once from now on.
goes_on() {
    for witness in $witnesses; do
        spoken=$(grep -c ": $witness " "said-$station.log" || true)
        hear "inner second .*: $witness " "said-$station.log" 60 "$vmm" $((spoken + 2))
    done
}

# await HOST: a VMM waits there, at $address; $there is its process.
await() {
    address=$(address_of "$1"):7400
    case $devices in *--net*) receiving="--net tap=tap-$1" ;; esac
    start "$1" vmm receive $receiving --insecure --name linux --listen "$address" --console "said-$((station + 1)).log" 2>"receive-$1.log"
    there=$started
    hear 'listening on' "receive-$1.log" 20 "$there"
}
receiving=

# other: the host where it is not.
other() {
    case $at in A) echo B ;; B) echo A ;; esac
}

# attempt WORD…: `migrate` to $address.
attempt() {
    on $at migrate --vm linux --to "$address" --max-downtime "$downtime" --timeout 120s "$@" >migrate.log 2>&1
}
downtime=20s

# is_kept TEXT WORD…: the guest stays where it is, because of that, undisturbed.
is_kept() {
    text=$1
    shift
    attempt "$@" && fail "the guest moved" || [ $? -eq 1 ] || fail "migrate ended with another status than 1"
    grep -q "$text" migrate.log || fail "migrate does not say '$text'"
    goes_on
}

# move MODE [WORD…]: to the other host, where all goes on; the VMM it leaves ends well.
move() {
    await "$(other)"
    attempt --mode "$@" --report "report-$((station + 1)).json" || fail "migrate --mode $* ended with $?"
    wait "$vmm" || fail "the source did not end well"
    at=$(other) vmm=$there station=$((station + 1))
    goes_on
}

# arrive: it is stopped; $said is all that it has said on its way.
arrive() {
    on $at vmm stop linux
    wait "$vmm" || fail "the last VMM did not end well"
    said=said.log
    for number in $(seq 0 $station); do cat "said-$number.log"; done | tr -d '\r' >$said
    check_words
}

# follow_clock MOVES, and check_clock: the guest's clock is held against the host's.
follow_clock() {
    consoles=$(for number in $(seq 0 "$1"); do echo "said-$number.log"; done)
    witness clock-follow $consoles >clock.samples &
}
check_clock() {
    downtimes=
    for number in $(seq $station); do
        downtime=$(sed -n 's/^.*"downtime_us": *\([0-9]*\).*$/\1/p' "report-$number.json" | head -n 1)
        downtimes="$downtimes $((downtime / 1000 + 1))"
    done
    witness clock-judge clock.samples "${CLOCK_SLACK_MS:-10}" $downtimes || fail "the guest's clock jumped"
}

# give_nic: the guest gets one, with a tap on either host.
give_nic() {
    make_tap A
    make_tap B
    devices="$devices --net tap=tap-A"
}

# visit and leave: a client outside talks to the guest over TCP and keeps a silent connection, all the way.
visit() {
    start client witness stream-visit 10.7.0.9:7000 stop-visit >visit.log 2>&1
    visitor=$started
    hear 'stream talks' visit.log 60 "$visitor"
}
leave() {
    touch stop-visit
    wait "$visitor" || fail "the client outside has lost something"
    tail -n 2 visit.log
}

# linux_travels MODE: a guest with too little memory and witnesses moves five times back and forth; twice in brief.
linux_travels() {
    needs_mode "$1"
    make_hosts
    make_disks
    more=3
    [ ! -e "$BED/brief" ] || more=0
    follow_clock $((2 + more))
    set_out pressure,records:/disk,clock
    hear ': churn round' said-0.log 90 "$vmm"
    move "$1"
    move "$1" --verify
    is_taken
    for number in $(seq $more); do move "$1"; done
    arrive
    check_churn
    check_disk
    check_clock
}
