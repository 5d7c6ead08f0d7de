"""`template create|ls|info|rm|verify`: booted guests, frozen, to fork from."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from qemuctl.cli import flags
from qemuctl.cli.declare import Argument, Option, group
from qemuctl.cli.output import (
    building,
    note,
    print_fields,
    print_json,
    print_table,
    working,
)
from qemuctl.cli.parameters import Json, Timeout, complete_images, complete_names
from qemuctl.cli.running import for_each, run_async
from qemuctl.errors import TemplateError, UsageError

if TYPE_CHECKING:
    from qemuctl.registry.template import Template
    from qemuctl.spec import Spec
    from qemuctl.templates.catalog import Making
    from qemuctl.templates.key import Recipe

template = group("template", "Booted guests, frozen; forks start from them at once.")


def complete_templates(incomplete: str) -> list[str]:
    """Template names for the shell's completion."""
    from qemuctl.templates.catalog import named

    return [t.name for t in named() if t.name.startswith(incomplete)]


Name = Annotated[
    str,
    Argument(
        metavar="NAME",
        help="the template's name",
        autocompletion=complete_templates,
    ),
]


@template.command(
    "create",
    example="qemuctl template create db --image debian --run ./setup",
)
@flags.describing
def create(
    name: Annotated[str, Argument(metavar="NAME", help="its name")],
    image: Annotated[
        str | None,
        Option(help="an image's name, or ./disk.qcow2", autocompletion=complete_images),
    ] = None,
    vm: Annotated[
        str | None,
        Option(help="a VM that is off", autocompletion=complete_names),
    ] = None,
    wait: Annotated[
        str, Option(metavar="agent|boot", help="until when it boots")
    ] = "boot",
    run: Annotated[
        str | None, Option(metavar="COMMAND", help="then, in its shell")
    ] = None,
    file: flags.File = None,
    *,
    given: flags.Given,
    timeout: Timeout = "300",
) -> None:
    """Boot a guest once, get it ready, and freeze it: memory, devices and disks.

    --timeout is for the boot, and again for --run. A template is made again by
    itself when QEMU or its image have changed; one made from a VM is not.
    """
    from qemuctl.cli.parameters import seconds
    from qemuctl.templates.key import Recipe

    if wait not in ("agent", "boot"):
        raise UsageError(f"not something to wait for: {wait}", hint="agent, boot")
    if sum(source is not None for source in (image, vm, file)) != 1:
        raise UsageError("say what it is made of: --image, --vm or -f FILE")
    if vm is not None and any(given.values()):
        raise UsageError(
            "a template of a VM is as the VM is", hint=f"change it: qemuctl edit {vm}"
        )
    spec = None
    if vm is None:
        spec, _ = flags.spec_from(name=name, image=image, file=file, flags=given)
    recipe = Recipe(wait=wait, run=run)
    making = _making(spec, vm or "", recipe, seconds(timeout))
    made = run_async(_create(name, making, spec.image if spec else None))
    note(
        f"created the template {name}: booted in {made.boot_seconds:.1f} s, frozen in "
        f"{made.freeze_seconds:.1f} s; start from it with: qemuctl fork {name}"
    )
    if made.guest.reseed is None:
        note(
            "warning: its guest has no way to make its random numbers anew (vmgenid "
            "driver, perl or python3): its forks begin with the same ones"
        )


@contextlib.asynccontextmanager
async def _making(
    spec: Spec | None, vm: str, recipe: Recipe, timeout: float
) -> AsyncIterator[Making]:
    from qemuctl.cli.progress import percent
    from qemuctl.templates.catalog import Making
    from qemuctl.templates.from_vm import made_of_vm

    if spec is not None:
        source = f"the image {spec.image}" if spec.image else "a spec"
        yield Making(spec=spec, recipe=recipe, source=source, timeout=timeout)
        return
    with percent(f"copying the disks of {vm}") as progress:
        making = made_of_vm(vm, recipe, timeout=timeout, progress=progress)
        async with making as made:
            yield made


async def _create(name: str, making: Any, image: str | None) -> Template:
    from qemuctl.templates.catalog import create as creating

    async with making as made:
        with working(f"booting {made.source}", say_after=3.0):
            return await creating(
                name, made, progress=building(f"building the image {image}, once:")
            )


@template.command("ls", example="qemuctl template ls --all")
def ls(
    every: Annotated[
        bool, Option("--all", "-a", help="also those made by `run` by the way")
    ] = False,
    json: Json = False,
) -> None:
    """List the templates."""
    from qemuctl.cli.numbers import size
    from qemuctl.templates.catalog import cached, damaged, named

    found = [*named(), *(cached() if every else [])]
    if json:
        print_json([_facts(item) for item in found])
        return
    rows = [
        (
            item.name, item.source, size(item.spec.memory.size), item.spec.cpu.count,
            size(item.used), _age(item), item.problem() or "",
        )
        for item in found
    ]  # fmt: skip
    problem = "its description is damaged, or it is being made"
    rows += [(name, "", "", 0, "", "", problem) for name in damaged()]
    print_table(
        ("NAME", "MADE OF", "MEMORY", "CPUS", "ON DISK", "AGE", "PROBLEM"), rows
    )


@template.command("info", example="qemuctl template info db")
def info(name: Name, json: Json = False) -> None:
    """Show what a template is and what it depends on."""
    from qemuctl.templates.catalog import find

    facts = _facts(find(name))
    if json:
        print_json(facts)
    else:
        print_fields(facts)


@template.command("rm", example="qemuctl template rm db")
def rm(
    names: Annotated[
        list[str] | None,
        Argument(metavar="[NAME…]", autocompletion=complete_templates),
    ] = None,
    cached: Annotated[
        bool, Option("--cached", help="all that were made by the way")
    ] = False,
) -> None:
    """Remove templates; one that VMs' disks stand on is refused."""
    from qemuctl.templates.catalog import remove, remove_cached

    if not names and not cached:
        raise UsageError("which template? give NAME, or --cached")

    def removing(name: str) -> None:
        with working(f"removing the template {name}", say_after=3.0):
            run_async(remove(name))
        note(f"removed the template {name}")

    if cached:
        number = run_async(remove_cached())
        note(f"removed {number} templates that were made by the way")
    for_each(names or [], removing)


@template.command("verify", example="qemuctl template verify db")
def verify(name: Name) -> None:
    """Read all files of a template and compare them with what they were."""
    from qemuctl.templates.catalog import find
    from qemuctl.thread import in_thread

    found = find(name)
    with working(f"reading the files of {name}", say_after=3.0):
        problem = run_async(in_thread(found.damage))
    if problem is not None:
        with contextlib.suppress(OSError, TemplateError):
            found.distrust()
        raise TemplateError(
            f"{name} is damaged: {problem}",
            hint="the next fork makes it again"
            if not found.furnished
            else f"qemuctl template rm {name}, and create it again",
        )
    note(f"{name}: all of its files are as they were made")


def _age(item: Template) -> str:
    from qemuctl.units import format_age

    return format_age(time.time() - item.made_at)


def _facts(item: Template) -> dict[str, Any]:
    return {
        "name": item.name,
        "made_of": item.source,
        "problem": item.problem(),
        "memory_bytes": item.spec.memory.size,
        "cpus": item.spec.cpu.count,
        "wait": item.wait,
        "run": item.run,
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(item.made_at)),
        "qemu": item.qemu,
        "version": item.version,
        "machine": item.machine,
        "accelerator": item.accel,
        "reseed": item.guest.reseed,
        "boot_seconds": item.boot_seconds,
        "freeze_seconds": item.freeze_seconds,
        "used_bytes": item.used,
        "folder": str(item.content),
        "key": item.key,
    }
