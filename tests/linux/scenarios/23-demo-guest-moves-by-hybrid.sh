# deadline: 120
# takes: 31
. "$BED/words.sh"

tours hybrid
