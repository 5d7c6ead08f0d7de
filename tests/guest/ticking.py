"""A guest that counts and writes all the while, and what it says of itself later:
no tick is lost, no byte of its disk or RAM is wrong.

Some five times a second the tiny guest appends a tick, `NUMBER UPTIME CHECKSUM`, to a
file on its disk, which is written at once, and says it on its serial port. By the
side of that it writes random blocks on its disk and to its RAM over and over, each
under the name of its own checksum; a few of them once only.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.guest.conftest import CPUS, Home

# A guest that can do it, with room for more memory and another processor.
CLOCK = (
    "--memory", "192M,max=448M", "--cpus", CPUS,
    "--disk", "size=48M,serial=data", "-p", ":22",
)  # fmt: skip
# Seconds without a tick after which something has gone wrong: a guest on a host that
# has much else to do may be heard of late. `scripts/bench_migrate.py` measures how
# short a migration is.
SILENCE = 20.0
# Shell alone where it counts: under emulation a process costs milliseconds. Reading
# from a pipe into which nobody writes is the shell's own way to sleep.
CHECKSUM = "(n * 2654435761 + t * 40503 + 12345) % 4294967291"
WORK = f"""
set -e
for disk in /sys/block/*; do
    read -r serial 2>/dev/null <$disk/serial && [ "$serial" = data ] && break
done
mkdir /disk /ram
mke2fs -q /dev/${{disk##*/}} >/dev/null
mount -t ext4 -o sync /dev/${{disk##*/}} /disk
mount -t tmpfs -o size=32m ram /ram
mkfifo /run/never

cat >/run/tick <<'END'
exec 3<>/run/never 4>>/disk/ticks 5>/dev/ttyS0
n=0
while :; do
    read -r up idle </proc/uptime
    t=${{up%.*}}${{up#*.}}
    n=$((n + 1))
    echo "$n $t $(({CHECKSUM}))" >&4
    echo "tick $n" >&5
    read -t 0.2 nothing <&3
done
END

cat >/run/write <<'END'
exec 3<>/run/never
block() {{    # a folder, a number, and what to fill the block with
    set -- "$1" "$1/$2-" "$3" "$1/$2-"*
    dd if="$3" of="$1/new" bs=128k count=1
    sum=$(md5sum <"$1/new")
    mv "$1/new" "$2${{sum%% *}}"
    shift 3
    rm -f "$@"
}}
for i in 0 1 2 3; do
    block /ram once$i /dev/urandom
    block /disk once$i /dev/urandom
done
while :; do
    for i in 0 1 2 3 4 5 6 7; do
        block /ram $i /dev/urandom
        block /disk $((i / 2)) /dev/urandom
        read -t 5 nothing <&3
    done
done
END
for work in tick write; do
    setsid sh /run/$work </dev/null >/dev/null 2>&1 &
done
until [ -s /disk/ticks ] && ls /ram/0-* >/dev/null 2>&1; do usleep 50000; done
"""
# What is read comes from the disk, not from what the guest still knows of it. A
# block that is replaced while it is read is gone, never half.
TELL = """
sync; echo 3 >/proc/sys/vm/drop_caches
cat /disk/ticks; echo --
md5sum /ram/*-* /disk/*-* 2>/dev/null
exit 0
"""


@dataclass(frozen=True)
class Told:
    """What a guest tells of itself: how often it ticked, what is wrong with it."""

    ticks: int
    missing: list[int]
    damaged: list[str]
    # The longest time between two ticks, by the guest's own clock.
    gap: float
    blocks: int = field(compare=False)

    def check(self) -> int:
        """Fails unless all is well; how often it ticked."""
        assert not self.missing, f"ticks that are lost: {self.missing[:20]}"
        assert not self.damaged, f"damaged: {self.damaged[:20]}"
        assert self.gap < SILENCE, f"no tick for {self.gap} s"
        assert self.blocks >= 8, self.blocks
        return self.ticks


def begin(home: Home, name: str) -> None:
    """Puts a tiny guest whose disk of serial `data` is empty to work."""
    home.run("exec", name, "--", "sh", "-c", WORK)


def begin_again(home: Home, name: str) -> None:
    """Boots the guest, which is off, and puts it to work from the beginning."""
    home.run("start", name, "--wait", timeout=150)
    begin(home, name)


def told(home: Home, name: str) -> Told:
    """What the guest says; nothing is checked yet."""
    text = home.run("exec", name, "--", "sh", "-c", TELL).stdout.decode("latin-1")
    log, _, sums = text.partition("--\n")
    # The last one may be read while it is written.
    lines = log.splitlines()[: -1 if not log.endswith("\n") else None]
    ticks, damaged = [], []
    for line in lines:
        tick = _tick(line)
        if tick is None:
            damaged.append(f"tick {line!r}")
        else:
            ticks.append(tick)
    blocks = [line.split() for line in sums.splitlines()]
    damaged += [path for found, path in blocks if not path.endswith(f"-{found}")]
    numbers = {number for number, _ in ticks}
    last = max(numbers, default=0)
    times = [uptime for _, uptime in ticks]
    assert times == sorted(times), "the guest's clock went backwards"
    return Told(
        ticks=last,
        missing=[n for n in range(1, last) if n not in numbers],
        damaged=damaged,
        gap=max((b - a for a, b in pairwise(times)), default=0) / 100,
        blocks=len(blocks),
    )


def _tick(line: str) -> tuple[int, int] | None:
    """Number and uptime (in 10 ms) of a line, None when it is damaged."""
    with contextlib.suppress(ValueError):
        n, t, checksum = map(int, line.split())
        if checksum == (n * 2654435761 + t * 40503 + 12345) % 4294967291:
            return n, t
    return None


@dataclass
class Heard:
    """The ticks that came through serial ports, by the clock of the test: seconds
    since it began to listen, each with the home that it came from."""

    ticks: list[tuple[float, int, Path]] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    @property
    def silence(self) -> float:
        """The longest time without one, that since the last not counted."""
        times = [0.0, *(at for at, _, _ in self.ticks)]
        return max((b - a for a, b in pairwise(times)), default=0.0)

    @property
    def last(self) -> int:
        return max((number for _, number, _ in self.ticks), default=0)

    def take(self, text: bytes, home: Path) -> None:
        at = time.monotonic() - self.begun
        known = self.last
        for line in text.split(b"\n"):
            word, _, number = line.strip().partition(b" ")
            # A log that was moved along says what is known.
            if word == b"tick" and number.isdigit() and int(number) > known:
                self.ticks.append((at, int(number), home))


@contextlib.contextmanager
def listening(*homes: Home) -> Iterator[Heard]:
    """Hears the ticks of a guest wherever in these homes it runs."""
    heard, over = Heard(), threading.Event()
    places = {home: _logs(home) for home in homes}

    def listen() -> None:
        # No event tells of files that are not there yet, in folders that are not.
        while not over.wait(0.01):
            for home, sizes in places.items():
                for (path, inode), size in _logs(home).items():
                    start = sizes.get((path, inode), 0)
                    if size <= start:
                        continue
                    with contextlib.suppress(OSError):
                        new = path.read_bytes()[start:]
                        whole = new[: new.rfind(b"\n") + 1]
                        heard.take(whole, home.path)
                        sizes[path, inode] = start + len(whole)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield heard
    finally:
        over.set()
        thread.join()


def _logs(home: Home) -> dict[tuple[Path, int], int]:
    """How long the logs are; a VM that comes back has another file at its path."""
    found = {}
    for path in home.path.glob("state/vms/*/serial.log"):
        with contextlib.suppress(OSError):
            status = path.stat()
            found[path, status.st_ino] = status.st_size
    return found
