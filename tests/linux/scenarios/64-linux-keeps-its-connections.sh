# A client outside the guest talks to it over TCP, both ways, and keeps a silent connection, while the guest moves once by
# each mode: no byte is lost or repeated. The longest silence that either has heard is told.
# deadline: 240
# takes: 63
. "$BED/words.sh"

needs_mode postcopy
make_hosts
give_nic
boards stream-serve:7000,clock
visit
goes_on
for mode in precopy stopcopy postcopy hybrid; do
    move "$mode"
done
leave
arrive
