"""Files that are written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Write a file so that a reader finds the old one or the new one, never a part of it.

    The content goes to a temporary file in the same folder, which then takes the file's name.

    Args:
        path: the file to write; its folder must exist.
        content: the bytes, or a function that writes them to the path it is given.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
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
