# Debian's kernel with disks, witnesses and too little memory moves five times by precopy; nothing is lost, no clock jumps.
# deadline: 300
# takes: 110
. "$BED/words.sh"

linux_travels precopy
