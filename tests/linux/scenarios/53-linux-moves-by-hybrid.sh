# Debian's kernel with disks, witnesses and too little memory moves back and forth by hybrid; nothing is lost, no clock jumps.
# deadline: 300
# takes: 109
. "$BED/words.sh"

linux_travels hybrid
