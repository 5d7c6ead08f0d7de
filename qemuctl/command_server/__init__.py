"""A process with all modules loaded that forks a worker for each command.

`server` accepts connections and forks; `worker` becomes the command; `client`
asks for one and waits for its status; `wire` is what they say to each other. The
room knows nothing of VMs: what a worker runs is handed to `serve`.

The client sends its arguments, environment, umask, working directory and standard
streams, so that a command has what it would have as a process of its own. Its
process group and its controlling terminal are not the client's.
"""

from __future__ import annotations
