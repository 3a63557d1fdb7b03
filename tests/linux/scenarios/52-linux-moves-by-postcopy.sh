# Debian's kernel with disks, witnesses and too little memory moves back and forth by postcopy; nothing is lost, no clock jumps.
# deadline: 300
# takes: 101
. "$BED/words.sh"

linux_travels postcopy
