# Debian's kernel with the CPU of a model sees the model and nothing else, and moves to a host whose guests may have no
# more than that. A guest with all of this host's CPU is refused there by name, and is not disturbed.
# deadline: 300
# takes: 23
. "$BED/words.sh"

vmm cpu >cpu.log || fail "vmm cpu ended with $?"
vmm run --name large --memory 64M --cpus 1 --cmdline idle --console large.console 2>large.log &
large=$!
hear working large.console 30 "$large"
vmm receive --name there --listen 127.0.0.1:7400 --cpu x86-64-v2 --console there.log 2>receive.log &
there=$!
hear 'listening on' receive.log 20 "$there"
migrate --vm large --to 127.0.0.1:7400 --mode precopy >refused.log 2>&1 && fail "all of this host's CPU was let in"
grep -q 'guests here may not have avx2 (CPUID 0x7.0 EBX bit 5)' refused.log || fail "the refusal does not name avx2"
vmm stop large
wait "$large" || fail "the refused guest did not go on"

LINUX_CPU=x86-64-v2
boot_linux "$BED/vmlinuz" 2
hear 'inner second 1' console.log 60 "$vmm"
flags=" $(sed -n 's/^INNER SEES //p' console.log | tr -d '\r') "
echo "flags:$flags" >flags.log
for flag in sse4_2 popcnt cx16 ssse3 lahf_lm nx x2apic tsc_deadline_timer; do
    case $flags in *" $flag "*) ;; *) fail "the guest does not see $flag" ;; esac
done
for flag in aes pclmulqdq movbe xsave avx avx2 bmi1 bmi2 abm smep smap erms rdrand rdtscp svm; do
    case $flags in *" $flag "*) fail "the guest sees $flag" ;; esac
done
migrate --vm linux --to 127.0.0.1:7400 --mode precopy --max-downtime 10s --timeout 120s --verify >migrate.log 2>&1 ||
    fail "migrate ended with $?"
wait "$vmm" || fail "the source did not end well"
after=$(($(sed -n 's/^inner second //p' console.log | tr -d '\r' | tail -1) + 3))
hear "inner second $after" there.log 60 "$there"
! grep CORRUPT console.log there.log || fail "the guest found something wrong"
vmm stop there
wait "$there" || fail "the destination did not end well"
