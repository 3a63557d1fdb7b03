# deadline: 120
# takes: 34
. "$BED/words.sh"

tours postcopy
