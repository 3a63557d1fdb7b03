# Debian's kernel boots as distributed, a bzImage.
# deadline: 180
. "$BED/words.sh"

vmm run --name linux --memory 256M --cpus 1 --kernel "$BED/vmlinuz" --initramfs "$BED/inner.cpio" \
    --cmdline "console=ttyS0 reboot=k panic=-1" --console console.log 2>vmm.log &
vmm=$!
sleep 1
if ! kill -0 $vmm 2>/dev/null && grep 'its vmlinux is needed' vmm.log; then
    skip "vmm does not boot a bzImage yet"
fi
hear 'INNER INIT RUNS' console.log 150 $vmm
vmm stop linux
wait $vmm || fail "vmm did not end well"
