# The demo guest's end-to-end tests of tests/tests/commands.rs.
# deadline: 600
. "$BED/words.sh"

end_to_end commands
