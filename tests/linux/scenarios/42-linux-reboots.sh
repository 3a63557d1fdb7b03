# Debian's kernel reboots, on one CPU, and comes up again in the same VMM with its disk; then there is a shell on its
# console, which answers what is typed.
# deadline: 240
# takes: 22
. "$BED/words.sh"

truncate -s 8M disk.img
boot_linux "$BED/vmlinuz" 1 inner=reboot
hear 'INNER REBOOTS' console.log 60 "$vmm"
hear 'INNER SHELL' console.log 150 "$vmm"
[ "$(grep -c 'INNER INIT RUNS' console.log)" = 2 ] || fail "it did not boot twice"
vmm info linux | grep -q '^reboots  *1$' || fail "vmm info does not count one reboot"
{ echo 'echo the shell says $((6 * 7))' && sleep 30; } | vmm console linux >typed.log 2>&1 &
hear 'the shell says 42' typed.log 30 "$vmm"
vmm stop linux
wait "$vmm" || fail "vmm did not end well"
