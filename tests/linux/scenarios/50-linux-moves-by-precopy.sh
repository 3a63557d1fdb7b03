# Debian's kernel with disks, witnesses and too little memory moves back and forth by precopy; nothing is lost, no clock jumps.
# deadline: 300
# takes: 93
. "$BED/words.sh"

linux_travels precopy
