"""Files that are written whole or not at all, and digests of their content."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mvmae.errors import UserError


def write_whole(file: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that it is complete, or as it was before.

    A temporary file beside it is written, flushed to the disk and renamed.

    Args:
        file: To write; an existing one is replaced.
        write: Writes the content into a binary stream.

    Raises:
        UserError: Its folder is gone, or no file can be made there, as in /proc.
    """
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename == str(temporary):
            raise UserError(
                f"cannot write {file}: its folder is gone, or no file can be made there"
            ) from error
        error.filename = error.filename or str(file)  # the error of a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(file: Path, content: bytes | memoryview) -> None:
    """Write a binary file whole or not at all."""
    write_whole(file, lambda stream: stream.write(content))


def write_text(file: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(file, text.encode())


def write_json(file: Path, content: Any) -> None:
    """Write indented JSON whole or not at all."""
    write_text(file, json.dumps(content, indent=2) + "\n")


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is missing, damaged or something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def digest(value: Any) -> str:
    """Compute the SHA-256 of tensors and plain data, independent of the file they are in.

    Raises:
        TypeError: The value contains anything else.
    """
    sha = hashlib.sha256()
    _update(sha, value)
    return sha.hexdigest()


def _update(sha: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        sha.update(f"{value.dtype}{list(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy())
    elif isinstance(value, dict):
        sha.update(f"dict {len(value)}".encode())
        for key, content in value.items():
            _update(sha, key)
            _update(sha, content)
    elif isinstance(value, list | tuple):
        sha.update(f"{type(value).__name__} {len(value)}".encode())
        for content in value:
            _update(sha, content)
    elif value is None or isinstance(value, bool | int | float | str):
        text = f"{type(value).__name__} {value!r}".encode(errors="surrogatepass")
        sha.update(f"{len(text)} ".encode() + text)
    else:
        raise TypeError(f"a checkpoint holds tensors and plain data, not {type(value).__name__}")
