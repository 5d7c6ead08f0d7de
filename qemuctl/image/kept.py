"""Programs that end with us, children and all, whatever it is that ends us."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from qemuctl.peers import last_of

# Seconds that a program has to clean up after itself.
GRACE = 5
# Its standard input is a pipe of ours that nothing is ever written to: its end is
# ours, and no kill(2) can keep the kernel from closing it. The shell is the leader
# of the process group, so the group's number cannot become another's while it
# lives. A signal ends `wait`, too, while the program still runs.
_KEEPER = """
exec 3<&0 </dev/null
over=
trap 'over=yes' TERM
"$@" 3<&- &
job=$!
{ read -r _; trap '' TERM; kill -TERM 0; sleep "$grace"; kill -KILL 0; } <&3 >/dev/null 2>&1 &
watch=$!
exec 3<&-
while wait "$job"; status=$?; kill -0 "$job" 2>/dev/null; do :; done
[ -z "$over" ] || kill -KILL 0
kill -KILL "$watch"
exit "$status"
"""  # noqa: E501


async def run_kept(
    argv: Sequence[str], told: Callable[[str], None] = lambda _line: None
) -> tuple[int, str]:
    """Runs a program in a session of its own; gives its status and what it wrote to
    its standard error. ``told`` gets the lines of its standard output.

    When the caller is cancelled or killed, all of its process group gets SIGTERM,
    and after `GRACE` seconds SIGKILL. Raises OSError when there is no sh.
    """
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", f"grace={GRACE}\n{_KEEPER}", "sh", *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    reading = asyncio.create_task(last_of(process.stderr))
    try:
        async for line in process.stdout:
            told(line.decode(errors="replace").strip())
        stderr = (await reading).decode(errors="replace").strip()
        return await process.wait(), stderr
    except BaseException:
        process.stdin.close()
        reading.cancel()
        await asyncio.shield(process.wait())
        raise
    finally:
        process.stdin.close()
