# deadline: 120
# takes: 44
. "$BED/words.sh"

tours postcopy
