# The demo guest's end-to-end tests of tests/tests/doubt.rs.
# deadline: 600
. "$BED/words.sh"

end_to_end doubt
