"""What qemu-img may take of the host for a file that somebody else made.

Its readers of foreign formats believe the tables of a file, so that a small one can
cost any amount of memory and processor time.
"""

from __future__ import annotations

import signal

from qemuctl.structs import Struct

_MIB = 1 << 20
# What the C library and QEMU say when there is no memory.
_NO_MEMORY = ("annot allocate memory", "Could not allocate")


class Limits(Struct, kw_only=False):
    """``memory`` and ``output`` in bytes; ``output`` is the longest file that may be
    written, None for any."""

    memory: int
    cpu_seconds: int
    output: int | None = None

    def command(self, prlimit: str) -> list[str]:
        """What a command line is put behind, with prlimit(1) from util-linux."""
        return [
            # At the hard limit comes SIGKILL, which could be anybody's.
            prlimit, f"--cpu={self.cpu_seconds}:{self.cpu_seconds + 5}",
            f"--as={self.memory}",
            *([] if self.output is None else [f"--fsize={self.output}"]),
            "--core=0", "--",
        ]  # fmt: skip

    def hit(self, returncode: int, words: str) -> str | None:
        """Which limit a process ended at, as far as its end tells."""
        if returncode == -signal.SIGXCPU:
            return f"{self.cpu_seconds} s of processor time"
        if returncode == -signal.SIGXFSZ and self.output is not None:
            return f"{self.output // _MIB} MiB of output"
        # How a process ends that gets no memory: glib and QEMU abort.
        no_memory = (-signal.SIGABRT, -signal.SIGTRAP, -signal.SIGSEGV)
        said = any(each in words for each in _NO_MEMORY)
        if returncode in no_memory or said:
            return f"{self.memory // _MIB} MiB of memory"
        return None


# To look at the tables of an image.
LOOK = Limits(memory=1024 * _MIB, cpu_seconds=30, output=64 * _MIB)

# The largest table that QEMU takes, that of a VDI (VDI_BLOCKS_IN_IMAGE_MAX), has
# 2 GiB. A file's content is read, and perhaps unpacked, at many times this rate; the
# pause at the beginning is for a disk of many terabytes with little in it.
_MEMORY, _PAUSE, _BYTES_A_SECOND = 4096 * _MIB, 600, _MIB


def reading(file_size: int) -> Limits:
    """To read all of an image whose file has that many bytes.

    By the size of the file, for the size of the disk is only what the file says.
    What is written has no bound but the room on the disk: raw disks are long.
    """
    return Limits(_MEMORY, _PAUSE + file_size // _BYTES_A_SECOND)
