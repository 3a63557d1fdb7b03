# The demo guest's end-to-end tests of tests/tests/disks.rs.
# deadline: 600
# takes: 17
. "$BED/words.sh"

end_to_end disks
