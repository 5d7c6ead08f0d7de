"""What a process inherits from the one that starts it, and a worker from its client.

Most of it can be taken over: limits, niceness, processors. What cannot, namespaces and
privileges above all, must be the same for both: a worker of which something is not as
the client's own process would have it does not run the client's command. The control
group (cgroups(7)) alone may differ: each login has its own.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

# Fields of proc_pid_status(5).
_SAME = (
    "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
    "NoNewPrivs", "Seccomp",
)  # fmt: skip
_LIMITS = sorted(
    {value for name, value in vars(resource).items() if name.startswith("RLIMIT_")}
)
_OF_SIZE = (resource.RLIMIT_AS, resource.RLIMIT_DATA)


def inherit(client: int) -> None:
    """Makes this process as one that the process ``client`` would have started.

    Raises:
        OSError, ValueError: it cannot be made so, or the client has gone.
    """
    theirs, ours = Path(f"/proc/{client}"), Path("/proc/self")
    if _unchangeable(theirs) != _unchangeable(ours):
        raise ValueError("another user, or other namespaces")
    nice = os.getpriority(os.PRIO_PROCESS, client)
    if nice != os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    processors = os.sched_getaffinity(client)
    if processors != os.sched_getaffinity(0):
        os.sched_setaffinity(0, processors)
    score = (theirs / "oom_score_adj").read_bytes()
    if score != (ours / "oom_score_adj").read_bytes():
        (ours / "oom_score_adj").write_bytes(score)
    for limit in _LIMITS:
        wanted = resource.prlimit(client, limit)
        if wanted != resource.getrlimit(limit):
            if limit in _OF_SIZE:
                raise ValueError("a limit of memory, of which a server takes more")
            resource.setrlimit(limit, wanted)


def _unchangeable(process: Path) -> list[object]:
    """What of a process must be as it is. Raises OSError."""
    root = os.stat(process / "root")  # noqa: PTH116 (each Path.stat is no quicker)
    fields = dict(
        line.partition(":")[::2]
        for line in (process / "status").read_text(errors="replace").splitlines()
    )
    own = int(fields["Pid"])
    spaces = sorted(os.listdir(process / "ns"))  # noqa: PTH208
    return [
        (root.st_dev, root.st_ino),
        [fields.get(name) for name in _SAME],
        [os.readlink(process / "ns" / name) for name in spaces],  # noqa: PTH115
        os.sched_getscheduler(own),
        _label(process),
    ]


def _label(process: Path) -> bytes | None:
    """What SELinux or AppArmor call it; None where there are none."""
    try:
        return (process / "attr/current").read_bytes()
    except OSError:
        return None
