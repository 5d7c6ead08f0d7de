"""`server`: a process that runs commands without their cold start."""

from __future__ import annotations

from qemuctl.cli.declare import group
from qemuctl.cli.output import note, print_json
from qemuctl.cli.parameters import Json

_PROGRAM = "from qemuctl.cli.serving import serve; serve()"

server = group("server", "A process of yours that makes each command quick.")


@server.command("start", example="qemuctl server start")
def start() -> None:
    """Start it, in the background; it stays until `stop`.

    It has all of qemuctl loaded and forks a worker for each command of yours, whatever
    its terminal, folder, environment and QEMUCTL_HOME. With QEMUCTL_SERVER=no a command
    does without it.
    """
    from qemuctl.command_server import control

    pid, new = control.start(_PROGRAM)
    said = "the command server runs" if new else "it runs already"
    note(f"{said}: process {pid}; it ends with: qemuctl server stop")


@server.command("status", example="qemuctl server status")
def status(json: Json = False) -> None:
    """Tell whether it runs, since when, and its memory; status 1 when it does not."""
    import psutil

    from qemuctl.cli.numbers import size
    from qemuctl.command_server import control
    from qemuctl.command_server.identity import address
    from qemuctl.units import format_age

    pid, answers = control.running(), control.answers()
    if pid is None or not psutil.pid_exists(pid):
        if json:
            print_json(None)
        else:
            note("no command server runs; to start one: qemuctl server start")
        raise SystemExit(1)
    process = psutil.Process(pid)
    memory = process.memory_full_info().pss
    if json:
        print_json(
            {
                "pid": pid, "answers": answers, "started": process.create_time(),
                "memory": memory, "socket": address(),
            }
        )  # fmt: skip
        return
    import time

    print(f"pid:     {pid}")
    print(f"serves:  {'yes' if answers else 'no: it does not answer'}")
    print(f"up:      {format_age(time.time() - process.create_time())}")
    print(f"memory:  {size(memory)}")
    print(f"socket:  {address()}")


@server.command("stop", example="qemuctl server stop")
def stop() -> None:
    """End it; commands that run go on to their end."""
    from qemuctl.command_server import control

    note("ended the command server" if control.stop() else "no command server runs")
