# deadline: 120
# takes: 33
. "$BED/words.sh"

tours precopy
