# Removes what a throwaway VM leaves, whoever died first and however.
#
#   undertaker.sh STATE MORE…  file descriptor 0: pipe held by all concerned
# The owner, the shepherd and QEMU hold the other end of the pipe: it closes
# when the last of them is gone, and not before. It runs before the owner makes
# STATE. Until it is told `made`, a folder of that name may be another VM's, and
# goes only if it is empty.
PATH=${PATH:+$PATH:}/usr/bin:/bin
trap '' HUP INT TERM
read -r word
if [ "$word" != made ]; then
  rmdir -- "$1"
  exit
fi
exec 3<"$1"
read -r _
# A qemu-img whose owner was killed may still be making a file there.
tries=100
while [ "$1" -ef /proc/self/fd/3 ] && ! rm -rf -- "$@" && [ "$tries" -gt 0 ]; do
  tries=$((tries - 1))
  sleep 0.1
done
