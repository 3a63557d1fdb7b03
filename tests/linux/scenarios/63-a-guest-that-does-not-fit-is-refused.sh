# A destination with too little memory, without the disk's file, without a CPU feature or a tap refuses before a page has
# moved, with all of its reasons, and the guest is not disturbed. The guest is the demo guest, with virtio devices.
# deadline: 90
. "$BED/words.sh"

make_hosts
vmm guest-image >kernel
truncate -s 1M disk.img
make_tap A
devices="--disk $PWD/disk.img --net tap=tap-A"
reasons='memory: the guest has|disk .*/disk.img|tap-A|may not have avx2'
receiving="--cpu x86-64-v2"
start A vmm run --name linux --memory 512G --cpus 1 --kernel kernel $devices --cmdline idle --console said-0.log 2>vmm.log
vmm=$started at=A station=0
hear ' work=' said-0.log 30 "$vmm"
mv disk.img elsewhere.img
devices=
await B
attempt --mode precopy --report report.json && fail "the guest moved" || [ $? -eq 1 ] || fail "migrate does not say kept"
echo "$reasons" | tr '|' '\n' >wanted
while read -r reason; do
    grep -q "$reason" migrate.log || fail "migrate does not say '$reason'"
done <wanted
grep -q '"pages": 0' report.json || fail "pages have moved"
hear ' work=' said-0.log 30 "$vmm" $(($(grep -c ' work=' said-0.log) + 2))
! grep -E 'CORRUPT|FAULT|corrupt=[1-9]' said-0.log || fail "the guest found something wrong"
on A vmm stop linux
wait "$vmm" || fail "vmm did not end well"
