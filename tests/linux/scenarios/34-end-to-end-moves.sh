# Those of the demo guest's end-to-end tests of tests/tests/moves.rs that tell most here.
# deadline: 300
. "$BED/words.sh"

end_to_end moves precopy_of_two_vcpus stopcopy postcopy_of_two_vcpus hybrid \
    guests_that_have_only_begun_to_boot
