# Debian's kernel with disks, witnesses and too little memory moves five times by hybrid; nothing is lost, no clock jumps.
# deadline: 300
# takes: 109
. "$BED/words.sh"

linux_travels hybrid
