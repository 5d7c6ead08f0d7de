"""Files of a user's own for cloud-init, and public keys: read, checked, made text.

A spec names them, or has their text itself. Commands that make a VM put the text in the
place of the name (`with_texts`): the VM can be started, cloned and taken elsewhere when
the file is gone, and what comes from a pipe is there once only.
"""

from __future__ import annotations

import os
import stat
import zlib
from pathlib import Path

from qemuctl.errors import SpecError
from qemuctl.image.user_data import check_user_data, mapping
from qemuctl.paths import blocking_folder
from qemuctl.spec.cloud import FILES, CloudInit, check_key, is_text, key_is_path

SIZE_MAX = 1024 * 1024
"""The largest file of a user's own that is taken, in bytes."""

_KEY_MAX = 64 * 1024
# A spec is read with each command, and has a largest size of its own.
_TEXT_MAX = 256 * 1024
_GZIP = b"\x1f\x8b"


def with_texts(cloud: CloudInit) -> CloudInit:
    """The same with the text of each file in the place of its name, and the keys in
    that of theirs. What is no text, or is very long, stays where it is.

    Waits for pipes. Raises SpecError for what cannot be used, and for a pipe whose
    content cannot stay.
    """
    update: dict[str, object] = {}
    for field in FILES:
        name: str | None = getattr(cloud, field)
        if name is None or is_text(name):
            continue
        content = own_content(cloud, field, wait=True) or b""
        text = _text(content)
        if text is not None:
            update[field] = text
        elif not Path(name).expanduser().is_file():
            raise SpecError(
                f"not a file, and what comes from it is no text of {_TEXT_MAX} bytes "
                f"at most: {name}",
                key=f"cloud_init.{field}", hint="put it into a file, and keep that",
            )  # fmt: skip
    if any(map(key_is_path, cloud.ssh_keys)):
        update["ssh_keys"] = tuple(given_keys(cloud.ssh_keys, wait=True))
    return cloud.model_copy(update=update) if update else cloud


def _text(content: bytes) -> str | None:
    """The content as a spec can hold it; None when it cannot."""
    try:
        if content.startswith(_GZIP):
            # cloud-init unpacks it, too.
            content = zlib.decompressobj(wbits=31).decompress(content, _TEXT_MAX + 1)
        text = content.decode()
    except (UnicodeDecodeError, zlib.error):
        return None
    if len(content) > _TEXT_MAX or "\0" in text:
        return None
    return text if is_text(text) else f"{text}\n"


def given_keys(keys: tuple[str, ...], *, wait: bool = False) -> list[str]:
    """The public keys of `ssh_keys`, files read; ``wait`` is for pipes among them.
    Raises SpecError."""
    found = []
    for index, key in enumerate(keys):
        where = f"cloud_init.ssh_keys[{index}]"
        if not key_is_path(key):
            found.append(key.strip())
            continue
        path = Path(key).expanduser()
        text = _read(path, where, _KEY_MAX, wait=wait).decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        if "PRIVATE KEY-----" in text:
            public = path.with_name(f"{path.name}.pub")
            raise SpecError(
                f"a private key, which must stay secret: {path}",
                key=where,
                hint=f"give the public one: {public}" if public.exists() else None,
            )
        try:
            found += [check_key(line) for line in lines if line[0] != "#"]
        except ValueError as error:
            raise SpecError(f"{path}: {error}", key=where) from error
    return found


def source_of(cloud: CloudInit, field: str) -> Path:
    """What errors call the source of one of `FILES`."""
    name = getattr(cloud, field) or ""
    return Path("the text") if is_text(name) else Path(name).expanduser()


def own_content(cloud: CloudInit, field: str, *, wait: bool = False) -> bytes | None:
    """What one of `FILES` holds, looked through; None where it is not given.

    Raises SpecError.
    """
    name: str | None = getattr(cloud, field)
    if name is None:
        return None
    key, path = f"cloud_init.{field}", source_of(cloud, field)
    content = name.encode() if is_text(name) else _read(path, key, SIZE_MAX, wait=wait)
    if field == "user_data":
        check_user_data(content, path, key)
    else:
        mapping(content, path, key)
    return content


def _read(path: Path, key: str, most: int, *, wait: bool) -> bytes:
    try:
        with open(path, "rb", opener=None if wait else _at_once) as file:
            if not wait and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SpecError(f"not a file: {path}", key=key)
            content = file.read(most + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SpecError(
            f"cannot be read: {path}: {reason}", key=key, hint=blocking_folder(path)
        ) from error
    if len(content) > most:
        raise SpecError(f"too large, more than {most} bytes: {path}", key=key)
    return content


def _at_once(path: str, flags: int) -> int:
    # Without the flag a pipe would keep open() waiting.
    return os.open(path, flags | os.O_NONBLOCK)
