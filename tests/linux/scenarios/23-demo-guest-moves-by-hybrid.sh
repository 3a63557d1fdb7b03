# deadline: 120
# takes: 35
. "$BED/words.sh"

tours hybrid
