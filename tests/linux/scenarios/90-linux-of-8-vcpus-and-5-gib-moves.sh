# Debian's kernel with 8 vCPUs, and RAM on both sides of the hole below 4 GiB, boots, moves, and moves back.
# deadline: 300
# takes: 65
. "$BED/words.sh"

make_hosts
room=5G cpus=8
set_out clock
move precopy
move hybrid
arrive
