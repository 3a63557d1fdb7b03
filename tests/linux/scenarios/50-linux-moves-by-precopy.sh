# Debian's kernel with two vCPUs and a disk moves by pre-copy and goes on.
# deadline: 300
. "$BED/words.sh"

linux_moves precopy
