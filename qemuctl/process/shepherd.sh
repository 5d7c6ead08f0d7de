# The parent of one QEMU: keeps its exit status when no Python is left alive,
# and ends it when its owner goes without having let go of it.
#
#   shepherd.sh STATE RUN      file descriptor 0: pipe from the owner
#                              file descriptor 1: pipe to the owner
#                              file descriptor 2: QEMU's log
# RUN/launch.sh sets the positional parameters to QEMU's argument list; the
# list is not on this command line, so that nobody who looks for QEMU by its
# command line finds this shell.
state=$1
run=$2
umask 077
exec 3<&0 4>&1 </dev/null >&2
# A bare PATH of the user's must not leave us without mv and rm.
PATH=${PATH:+$PATH:}/usr/bin:/bin

. "$run/launch.sh"
# With this device the guest chooses QEMU's exit status, also one that a shell would
# take for a signal's.
case $* in *isa-debug-exit*) chosen=" by the guest" ;; *) chosen= ;; esac

"$@" 3<&- 4>&- &
qemu=$!

# Closing a terminal, or a TERM meant for all of us, is QEMU's to answer.
trap '' HUP INT
trap 'kill -TERM "$qemu"' TERM
# The watcher ends when it is told to detach; its pid may then be another's.
trap 'watch=' USR1

# A start is all or nothing: until the owner says `detach`, its end (however
# it came) closes the pipe, and that is the end of QEMU. KILL, because a
# stopped or stuck QEMU would not hear anything milder.
{
  read -r word <&3
  if [ "$word" = detach ]; then kill -USR1 "$$"; else kill -KILL "$qemu"; fi
} 2>/dev/null 4>&- &
watch=$!
# Only now: whoever knows of QEMU may rely on its being watched.
echo "$qemu" >&4
exec 3<&- 4>&-

# What a guest can have QEMU write without end: at $most bytes the older half gives way
# to a hole. QEMU and readers keep their places in the file (see qemuctl/bounded.py).
# On a file system without holes all of it goes.
most=8388608
trim() {
  stat -c '%b %s %n' "$state/serial.log" "$state/qemu.log" "$state/events.out" \
    2>/dev/null | while read -r blocks size log; do
    [ $((blocks * 512)) -gt "$most" ] || continue
    old=$(((size - most / 2) / 4096 * 4096))
    fallocate -n -p -o 0 -l "$old" "$log" 2>/dev/null || : >"$log"
  done
}

# A trapped signal interrupts `wait`, which then says more than 128 though
# QEMU is still there.
bury() {
  trap - EXIT CHLD
  while [ -z "$status" ]; do
    wait "$qemu"
    status=$?
    ! kill -0 "$qemu" 2>/dev/null || status=
  done
  # They have the lock too, and whoever saw us go must find the VM off. KILL, because
  # a TERM is lost on a shell that has just been forked and still has our trap.
  [ -z "$nap" ] || { kill -KILL "$nap" && wait "$nap"; } 2>/dev/null
  echo "$status$chosen" >"$state/exit.new" && mv -f "$state/exit.new" "$state/exit"
  [ -z "$watch" ] || { kill -KILL "$watch" && wait "$watch"; } 2>/dev/null
  rm -rf -- "$run"
}
# A shell ends when it cannot fork; what is needed most must not depend on that.
trap bury EXIT

# No event tells that a file has grown too long: so we look after each nap, which does
# not outlive us, also if we have ended before it asks for that.
sleeps='[ "$PPID" = "$0" ] && exec sleep 10'
ends_with_us=
command -v setpriv >/dev/null && ends_with_us="setpriv --pdeathsig KILL"
trap : CHLD
nap= status=
while [ -z "$status" ]; do
  if [ -z "$nap" ] || ! kill -0 "$nap" 2>/dev/null; then
    [ -z "$nap" ] || trim
    $ends_with_us sh -c "$sleeps" "$$" &
    nap=$!
  fi
  wait "$qemu"
  status=$?
  ! kill -0 "$qemu" 2>/dev/null || status=
done
