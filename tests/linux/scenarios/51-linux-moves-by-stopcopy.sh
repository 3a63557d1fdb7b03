# Debian's kernel with disks, witnesses and too little memory moves back and forth by stopcopy; nothing is lost, no clock jumps.
# deadline: 300
# takes: 66
. "$BED/words.sh"

linux_travels stopcopy
