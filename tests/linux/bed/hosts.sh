# Two hosts and a client beside them, on one network; each is a network namespace. Sourced by words.sh.
#
#   A 10.7.0.1: bridge lan ──────┐         ┌────── B 10.7.0.2: bridge lan
#               └ tap of a guest └── wire ─┘ │                 └ tap of a guest
#                                    client 10.7.0.3
#
# A guest has 10.7.0.9 wherever it is. Both hosts see the same files, as hosts with shared storage do; each has control
# sockets of its own.

# By its path: busybox would take its own program of this name.
ip=$(which ip)

# make_hosts: all of that, but the taps.
make_hosts() {
    [ "$(id -u)" -eq 0 ] || skip "needs root, to make networks"
    for host in wire A B client; do
        unshare -n sleep 100000 &
        eval "ns_$host=$!"
        until [ "$(readlink /proc/$!/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
        mkdir -p "run-$host" && chmod 700 "run-$host"
        on "$host" "$ip" link set lo up
    done
    on wire "$ip" link add wire type bridge
    on wire "$ip" link set wire up
    for host in A B client; do
        eval "ns=\$ns_$host"
        on wire "$ip" link add "to-$host" type veth peer name out netns "$ns"
        on wire "$ip" link set "to-$host" master wire up
        on "$host" "$ip" link set out up
    done
    for host in A B; do
        on $host "$ip" link add lan type bridge
        on $host "$ip" link set lan up
        on $host "$ip" link set out master lan
        on $host "$ip" address add "$(address_of $host)/24" dev lan
    done
    on client "$ip" address add 10.7.0.3/24 dev out
}

# make_tap HOST: `tap-HOST` on its bridge, for a guest.
make_tap() {
    on "$1" "$ip" tuntap add "tap-$1" mode tap
    on "$1" "$ip" link set "tap-$1" master lan up
}

address_of() {
    case $1 in A) echo 10.7.0.1 ;; B) echo 10.7.0.2 ;; here) echo 127.0.0.1 ;; esac
}

# on HOST COMMAND…: there. `here` is where the scenario itself runs.
on() {
    enter "$1"
    shift
    VMM_RUNTIME_DIR=$runtime VMM_STATE_DIR=$runtime/state $into "$@"
}

# start HOST COMMAND…: the same in the background; $started is its process.
start() {
    enter "$1"
    shift
    VMM_RUNTIME_DIR=$runtime VMM_STATE_DIR=$runtime/state $into "$@" &
    started=$!
}

enter() {
    runtime=$VMM_RUNTIME_DIR into=
    [ "$1" != here ] || return 0
    runtime=$PWD/run-$1
    eval "into=\"nsenter -t \$ns_$1 -n\""
}
