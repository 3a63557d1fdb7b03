# deadline: 120
# takes: 32
. "$BED/words.sh"

tours precopy
