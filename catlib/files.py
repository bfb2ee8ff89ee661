"""Files that are written whole or not at all."""

import os
import re
from collections.abc import Callable
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.\d+\.part")  # .<name of the file>.<process>.part


def write_whole(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Write a file so that a reader finds the old one or the new one, never a part of it.

    The content goes to a temporary file in the same folder, which then takes the file's name.

    Args:
        path: the file to write; its folder must exist.
        content: the bytes, or a function that writes them to the path it is given.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of :func:`write_whole` that killed processes left in a folder.

    Call it when no other process writes there. Every other file and folder is left alone.
    """
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink()
