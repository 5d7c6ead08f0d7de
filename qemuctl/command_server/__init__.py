"""A process with all modules loaded that forks a worker for each command.

`client` is what a command does first: it asks a server to run it, and when there is
none that can, it runs by itself. `server` accepts connections and forks; `parent` is
the process that a worker has for a parent, one for each client, so that commands do
not depend on the server once they run; `worker` becomes the command; `inherit` makes
it what a process is that the client starts, and refuses where that cannot be; `become`
hands a program that takes the command's place to the client. `wire` is what they say
to each other, `identity` which code a server has loaded; `user` serves a user's
commands, and `control` starts and ends that server.

The room knows nothing of VMs: what a worker runs is handed to `Server`.

A command is begun by nobody or by one: a worker is ready before the client knows, and
runs nothing before the client says so; a client that has said so waits.

The client is loaded by every command before all else: it, `wire` and `identity`
import only what Python has loaded by then, or what is built into it.
"""

from __future__ import annotations
