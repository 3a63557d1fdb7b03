# Debian's kernel has its virtio console as its own, and a program there hears what is typed: at once, after a pause, and
# after a move by pre-copy, with the beginning of a line typed at the source and its end at the destination.
# deadline: 300
# takes: 27
. "$BED/words.sh"

# type_in VM TEXT: as a person at `vmm console` would.
type_in() {
    printf "$2" | vmm console "$1" >"typed.$1.log" 2>&1 &
    typist=$!
}

# heard TEXT FILE PID: waits until the guest has said that it has heard just that.
heard() {
    hear "^inner heard: $1.\?$" "$2" 30 "$3"
    kill "$typist" 2>/dev/null || true
}

vmm run --name linux --memory 256M --cpus 1 --kernel "$BED/vmlinuz" --initramfs "$BED/inner.cpio" --virtio-console \
    --cmdline "console=ttyS0 console=hvc0 loglevel=6 panic=-1 ${LINUX_WORDS:-} inner=hvc" --console console.log 2>vmm.log &
vmm=$!
hear 'INNER LISTENS on hvc0; the kernel speaks on .*hvc0' console.log 150 "$vmm"
type_in linux 'one\n'
heard one console.log "$vmm"
vmm pause linux
type_in linux 'while it is paused\n'
sleep 1
! grep -q 'heard: while' console.log || fail "a guest that is paused has answered"
vmm resume linux
heard 'while it is paused' console.log "$vmm"

vmm receive --name there --listen 127.0.0.1:7400 --console there.log 2>receive.log &
there=$!
hear 'listening on' receive.log 20 "$there"
type_in linux 'half here, '
hear 'half here' console.log 20 "$vmm"
migrate --vm linux --to 127.0.0.1:7400 --mode precopy --max-downtime 10s --timeout 120s --verify >migrate.log 2>&1 ||
    fail "migrate ended with $?"
wait "$vmm" || fail "the source did not end well"
type_in there 'half there\n'
heard 'half here, half there' there.log "$there"
type_in there 'and two\n'
heard 'and two' there.log "$there"
vmm stop there
wait "$there" || fail "the destination did not end well"
