# Debian's kernel on two CPUs powers off when its power button is pressed: where it was booted, and where it has moved to.
# deadline: 360
# takes: 36
. "$BED/words.sh"

truncate -s 8M disk.img
boot_linux "$BED/vmlinuz" 2
hear 'inner second 1' console.log 60 "$vmm"
vmm shutdown linux --wait 60
wait "$vmm" || fail "vmm did not end well"
grep -q 'INNER BUTTON' console.log || fail "it powered off for another reason"
rm console.log

boot_linux "$BED/vmlinuz" 2
hear 'inner second 1' console.log 60 "$vmm"
vmm receive --name there --listen 127.0.0.1:7400 --console there.log 2>receive.log &
there=$!
hear 'listening on' receive.log 20 "$there"
migrate --vm linux --to 127.0.0.1:7400 --max-downtime 10s --timeout 120s >migrate.log 2>&1 || fail "migrate ended with $?"
wait "$vmm" || fail "the source did not end well"
vmm shutdown there --wait 60
wait "$there" || fail "the destination did not end well"
grep -q 'INNER BUTTON' there.log || fail "it powered off for another reason there"
