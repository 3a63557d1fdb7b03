# The demo guest boots, finds both of its vCPUs, and works for some seconds without finding anything wrong.
# takes: 8
. "$BED/words.sh"

vmm run --name works --memory 64M --cpus 2 --cmdline "fill=16 dirty ws=8 rate=200" --console console.log 2>vmm.log &
vmm=$!
hear ' t=5.*s work=' console.log 50 $vmm
vmm stop works
wait $vmm || fail "vmm did not end well"
grep -q 'corrupt=0' console.log || fail "the guest does not say that nothing is wrong"
! grep -E 'CORRUPT|FAULT' console.log
