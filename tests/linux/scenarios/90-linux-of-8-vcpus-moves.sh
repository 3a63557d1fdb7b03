# Debian's kernel with 8 vCPUs boots, moves, and moves back.
# deadline: 300
. "$BED/words.sh"

make_hosts
cpus=8
set_out clock
move precopy
move hybrid
arrive
