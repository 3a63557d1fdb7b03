# Debian's kernel boots as an ELF file, by its PVH entry, to its first program.
# deadline: 180
. "$BED/words.sh"

vmm run --name linux --memory 256M --cpus 1 --kernel "$BED/vmlinux" --initramfs "$BED/inner.cpio" \
    --cmdline "console=ttyS0 reboot=k panic=-1" --console console.log 2>vmm.log &
vmm=$!
hear 'INNER INIT RUNS' console.log 150 $vmm
hear 'inner second 2' console.log 20 $vmm
vmm stop linux
wait $vmm || fail "vmm did not end well"
