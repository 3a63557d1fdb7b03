# deadline: 120
. "$BED/words.sh"

tours postcopy
