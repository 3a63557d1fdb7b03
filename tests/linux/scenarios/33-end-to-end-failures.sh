# Those of the demo guest's end-to-end tests of tests/tests/failures.rs that tell most here.
# deadline: 300
. "$BED/words.sh"

end_to_end failures the_destination_dies_in_precopy ctrl_c_cancels the_link_falls_silent \
    a_guest_that_writes_faster_than_the_link_stays_and_is_as_fast_as_before
