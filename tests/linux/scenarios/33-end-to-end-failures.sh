# The demo guest's end-to-end tests of tests/tests/failures.rs.
# deadline: 600
. "$BED/words.sh"

needs_a_processor
end_to_end failures
