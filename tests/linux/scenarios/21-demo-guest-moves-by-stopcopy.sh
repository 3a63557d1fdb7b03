# deadline: 120
# takes: 18
. "$BED/words.sh"

tours stopcopy
