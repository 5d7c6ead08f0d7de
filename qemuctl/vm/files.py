"""Files into the guest and out of it."""

from __future__ import annotations

from pathlib import Path

from qemuctl.connection.connection import Connection
from qemuctl.guest.conversation import NotAFolder
from qemuctl.guest.copy import get_file, put_file
from qemuctl.guest.port import Way, through_agent
from qemuctl.guest.tree import get_tree, put_tree
from qemuctl.image.progress import Progress, silent


class Files:
    """The files of one guest. They go through its agent, or another ``way``.

    A file is there whole or not at all, and its mode is kept. A name in the
    guest without a leading slash, or with ``~/``, counts from the home folder of
    the user who writes there, for the agent root's. A folder as the target takes
    in what is copied, under its own name.
    """

    def __init__(self, vm: Connection) -> None:
        self._vm = vm

    def _agent(self) -> Way:
        return through_agent(self._vm.agent, self._vm.paths.copy_socket)

    async def put(
        self,
        source: Path,
        target: str,
        *,
        recursive: bool = False,
        progress: Progress = silent,
        way: Way | None = None,
    ) -> str:
        """Copies a file, or with ``recursive`` also a folder, into the guest.

        Gives its path there; ``progress`` gets bytes. Raises HostError for
        what is wrong here, CopyError in the guest's own words, AgentError when
        the way breaks, UnexpectedExit when QEMU ends.
        """
        put = put_tree if recursive and source.is_dir() else put_file
        way = way or self._agent()
        return await self._vm.unless_ended(put(way, source, target, progress=progress))

    async def get(
        self,
        source: str,
        target: Path,
        *,
        recursive: bool = False,
        progress: Progress = silent,
        way: Way | None = None,
    ) -> Path:
        """Copies a file, or with ``recursive`` also a folder, out of the guest.

        Gives its path here; raises as `put` does.
        """
        return await self._vm.unless_ended(
            self._get(way or self._agent(), source, target, recursive, progress)
        )

    async def _get(
        self, way: Way, source: str, target: Path, recursive: bool, progress: Progress
    ) -> Path:
        if recursive:
            try:
                return await get_tree(way, source, target, progress=progress)
            except NotAFolder:
                pass
        return await get_file(way, source, target, progress=progress)
