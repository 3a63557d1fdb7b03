# deadline: 120
# takes: 15
. "$BED/words.sh"

tours stopcopy
