"""How `image info`, `map`, `du` and `snapshot ls` look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qemuctl.cli.output import print_fields, print_json, print_table
from qemuctl.tail import plain
from qemuctl.units import format_rounded

if TYPE_CHECKING:
    from qemuctl.image.chain import Layer
    from qemuctl.image.extents import Extent, Usage
    from qemuctl.image.qcow2 import Header
    from qemuctl.image.snapshots import Snapshot

_FLAGS = ("dirty", "corrupt", "encrypted", "untouched")


def print_info(
    layers: Sequence[Layer],
    header: Header | None,
    taken: Sequence[Snapshot],
    json: bool,
) -> None:
    """An image and all that lies below it."""
    flags = [name for name in _FLAGS if header is not None and getattr(header, name)]
    top = layers[0]
    if json:
        print_json(
            asdict(top)
            | {
                "header": asdict(header) if header else None,
                "flags": flags,
                "snapshots": [_snapshot(one) for one in taken],
                "chain": [asdict(layer) for layer in layers],
            }
        )
        return
    print_fields(
        {
            "file": str(top.path),
            "format": top.format + (f" (version {header.version})" if header else ""),
            "virtual size": _exact(top.virtual_size),
            "used": format_rounded(top.used),
            "file size": format_rounded(top.file_size),
            "cluster size": format_rounded(header.cluster_size) if header else None,
            "flags": ", ".join(flags),
            "snapshots": "\n".join(
                f"{plain(one.name)}  {_moment(one)}" for one in taken
            ),
            "backing": "\n".join(_tree(layers[1:])),
        }
    )  # fmt: skip


def _exact(size: int) -> str:
    return f"{format_rounded(size)} ({size} bytes)"


def _tree(layers: Sequence[Layer]) -> list[str]:
    lines = []
    for depth, layer in enumerate(layers):
        what = layer.remote or str(layer.path)
        sizes = (
            f"{format_rounded(layer.virtual_size)}, {format_rounded(layer.used)} used"
        )
        known = f"{layer.format}, {sizes}" if layer.remote is None else "not followed"
        lines.append(f"{'   ' * depth}└─ {what} ({known})")
    return lines


def print_map(found: Sequence[Extent], layers: Sequence[Layer], json: bool) -> None:
    """Where the data of an image is, a line for each stretch."""
    if json:
        print_json([asdict(one) for one in found])
        return
    print_table(
        ("START", "LENGTH", "IS", "FILE", "OFFSET"),
        [
            (
                one.start,
                one.length,
                "data" if one.data else "zeros" if one.present else "nothing",
                layers[one.depth].path if one.present else None,
                one.offset,
            )
            for one in found
        ],
    )


def print_usage(found: Sequence[Usage], json: bool) -> None:
    """What images take, a line for each file; below an image its backing files."""
    if json:
        print_json([asdict(one) | {"used_by_all": one.used_by_all} for one in found])
        return
    rows: list[tuple[object, ...]] = []
    for one in found:
        for depth, (layer, data) in enumerate(
            zip(one.layers, one.allocated, strict=True)
        ):
            name = ("  " * (depth - 1) + "└ " if depth else "") + str(layer.path)
            size = format_rounded(layer.virtual_size)
            rows.append(
                (
                    format_rounded(layer.used),
                    format_rounded(data),
                    size,
                    layer.format,
                    name,
                )
            )
    print_table(("USED", "DATA", "VIRTUAL", "FORMAT", "FILE"), rows)


def print_snapshots(taken: Sequence[Snapshot], json: bool) -> None:
    """The snapshots inside one file."""
    if json:
        print_json([_snapshot(one) for one in taken])
        return
    print_table(
        ("ID", "NAME", "CREATED", "MEMORY"),
        [
            (
                plain(one.id),
                plain(one.name),
                _moment(one),
                format_rounded(one.vm_state_size) if one.vm_state_size else None,
            )
            for one in taken
        ],
    )


def _moment(one: Snapshot) -> str:
    return one.created.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _snapshot(one: Snapshot) -> dict[str, Any]:
    return asdict(one) | {"created": one.created.isoformat()}
