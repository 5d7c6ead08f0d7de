"""What a guest may be made of for templates and forks of it to be possible."""

from __future__ import annotations

from collections.abc import Iterator

from qemuctl.errors import SpecError
from qemuctl.spec import Disk, Nic, Spec
from qemuctl.spec.arguments import written_drives

# Words of QEMU arguments that take memory, or a machine's state, elsewhere.
_ELSEWHERE = (
    "vhost-user",
    "memory-backend",
    "-mem-path",
    "-mem-prealloc",
    "virtio-mem",
    "virtio-balloon",
    "ivshmem",
    "vfio-",
)
# Those that bring a folder which a guest may write to.
_FOLDERS = ("-fsdev", "-virtfs")


def check_forkable(spec: Spec) -> None:
    """Raises SpecError, naming both sides, for what cannot be combined with a
    template: that which no fork could have a copy of."""
    for key, problem in _problems(spec):
        raise SpecError(f"cannot be combined with a template: {problem}", key=key)


def _problems(spec: Spec) -> Iterator[tuple[str, str]]:
    if not spec.agent:
        yield "agent", "each fork is given its own name and clock by the guest's agent"
    if spec.balloon and "balloon" in spec.model_fields_set:
        problem = "what one guest gives back would be cut out of the memory of all"
        yield "balloon", f"{problem} (say balloon: false)"
    for index, disk in enumerate(spec.disks):
        if disk.path is not None and not disk.readonly:
            problem = f"all forks would write to the same file: {disk.path}"
            yield f"disks[{index}].path", f"{problem} (say readonly: true)"
    for index, nic in enumerate(spec.nics):
        if nic.type in ("tap", "socket"):
            yield (
                f"nics[{index}].type",
                f"all forks would be plugged into the same {nic.type}",
            )
    for argument in spec.extra_args:
        if any(_names(argument, word) for word in _ELSEWHERE):
            yield "extra_args", f"its forks' memory is the template's: {argument}"
    folders = [a for a in spec.extra_args if any(_names(a, w) for w in _FOLDERS)]
    for argument in (*written_drives(spec.extra_args), *folders):
        problem = f"all forks would write to the same files: {argument}"
        yield "extra_args", f"{problem} (say it as disks)"


def _names(argument: str, word: str) -> bool:
    if not word.startswith("-"):
        return word in argument
    # QEMU takes an option with one dash or two.
    return argument in (word, f"-{word}")


def check_alike(name: str, spec: Spec, wanted: Spec) -> None:
    """Raises SpecError when a fork's spec differs from that of its template, of this
    name, in more than what is on the host's side.

    A machine that differs in its devices cannot take the other's state.
    """
    has = template_spec(spec, name).model_dump()
    asked = template_spec(wanted, name).model_dump()
    for key in has:
        if has[key] != asked[key]:
            raise SpecError(
                f"not as in the template {name}, of which it is to be a fork", key=key
            )


def template_spec(spec: Spec, name: str) -> Spec:
    """The spec of the guest that becomes a template: that of each of its forks, but
    for what is on the host's side alone.

    Raises SpecError as `check_forkable` does.
    """
    check_forkable(spec)
    return fork_spec(spec, name).model_copy(
        # No port of the host is taken for a guest that nobody talks to.
        update={"nics": tuple(map(_without_forwards, spec.nics))}
    )


def fork_spec(spec: Spec, name: str) -> Spec:
    """The spec of a fork: new disks are overlays, which are qcow2."""
    return spec.model_copy(
        update={"name": name, "balloon": False, "disks": tuple(map(_own, spec.disks))}
    )


def _own(disk: Disk) -> Disk:
    return disk if disk.path else disk.model_copy(update={"format": "qcow2"})


def _without_forwards(nic: Nic) -> Nic:
    return nic.model_copy(update={"forward": ()})
