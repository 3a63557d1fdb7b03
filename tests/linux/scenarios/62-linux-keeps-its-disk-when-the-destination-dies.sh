# The destination is killed before commit: the guest goes on writing where it is, nobody else can have its disk, and it
# moves to another destination with every record.
# deadline: 240
# takes: 32
. "$BED/words.sh"

make_hosts
make_disks
set_out records:/disk,clock
await B
attempt --mode precopy --bandwidth 4M --compression none &
attempt=$!
hear 'round 0' migrate.log 30 "$attempt"
kill -KILL "$there"
wait "$attempt" && fail "the guest moved to a destination that was killed" || [ $? -eq 1 ] || fail "migrate does not say kept"
goes_on
is_taken
move precopy
is_taken
arrive
check_disk
