# Those of the demo guest's end-to-end tests of tests/tests/doubt.rs that tell most here.
# deadline: 300
. "$BED/words.sh"

end_to_end doubt commit_is_lost_and_said_again the_answer_to_commit_is_lost
