# Debian's kernel with two vCPUs and a disk moves by stop-and-copy and goes on.
# deadline: 300
. "$BED/words.sh"

linux_moves stopcopy
