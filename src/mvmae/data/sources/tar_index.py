"""The index of a tar file: which images it contains, and where. Kept as FILE.tar.index.

Tar headers are not trusted: members are never written to a disk, whatever is not a plain file is
skipped and counted, and sizes are compared with the size of the tar file.
"""

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mvmae.data.reading.decode import EXTENSIONS
from mvmae.data.sources.string_table import CodedWords, StringTable, encode_words, store_strings
from mvmae.errors import UserError

SUFFIX = ".index"
MAGIC = b"mvmae tar index 2\n"
DIGEST = 32  # bytes of the BLAKE2b hash in an index file
BLOCK = 512  # bytes; a tar file consists of blocks of this size
MAX_HEADER = 1 << 20  # bytes of a long name or of PAX records; a few hundred are usual
MAX_TEXT = 1 << 16  # bytes of a .cls or .json file
MAX_BYTES = 1 << 31  # bytes of an image
PROBES = 16  # headers by which a copy is recognised as the indexed file
COMPRESSED = {
    b"\x1f\x8b": "gzip -d",
    b"BZh": "bzip2 -d",
    b"\xfd7zXZ": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}
# What tarfile raises; IndexError for a truncated header of a sparse file.
DAMAGE = (tarfile.TarError, ValueError, OverflowError, RecursionError, OSError, IndexError)


class TarIndex(NamedTuple):
    """The images of a tar file, in the file's order."""

    names: StringTable
    """Member names without a leading ./."""

    starts: np.ndarray
    """Offsets of the images in the tar file."""

    sizes: np.ndarray
    """Sizes in bytes."""

    labels: CodedWords
    """Label of each image, from .cls or .json."""

    groups: CodedWords
    """Group of each image, from .json."""

    passed_over: dict[str, int]
    """Number of skipped members by kind."""

    damage: str
    """What is wrong with the file from some offset on; empty if it is sound."""


class Stamp(NamedTuple):
    """Tells whether a file is still the one that was indexed."""

    size: int
    mtime_ns: int | None
    """Nanoseconds; None to compare by `probe_headers` instead, because copies have other times."""


class _Bounded:
    """A file wrapper that limits how much a tar header can make tarfile read at once."""

    def __init__(self, file: BufferedIOBase) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes.

        Raises:
            tarfile.ReadError: This is more than a header can have, or has no limit.
        """
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError("a header claims an impossible length")
        return self.file.read(size)


def index_tar(file: BufferedIOBase, size: int, name: str) -> TarIndex:
    """Index a tar file.

    As in WebDataset, the files of a sample share a key, the name up to the first dot of its last
    part. The label is in KEY.cls or else in KEY.json under `label`, the group in KEY.json under
    `group`. Of several members with one name the last counts, as when tar unpacks them.

    Args:
        file: The tar file.
        size: Size of the tar file in bytes.
        name: What to call it in messages.

    Raises:
        UserError: It is not a tar file, or a compressed one.
    """
    _refuse_compressed(file, name)
    passed, damage = Counter[str](), list[str]()
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}
    groups: dict[str, str] = {}
    described: dict[str, str] = {}
    for member in _members(file, size, name, damage):
        inside, reason = _plain_name(member)
        if reason:
            passed[reason] += 1
            continue
        key, _, suffix = split_name(inside)
        if f".{suffix.rpartition('.')[2]}".lower() in EXTENSIONS:
            if member.size > MAX_BYTES:
                passed["larger than 2 GB"] += 1
                continue
            passed["replaced by a later one of the same name"] += inside in images
            images.pop(inside, None)  # so that the order is that of the members that count
            images[inside] = member.offset_data, member.size
        # Larger ones are not labels, and would be read into memory.
        elif suffix in ("cls", "json") and member.size <= MAX_TEXT:
            file.seek(member.offset_data)
            text = file.read(member.size)
            if suffix == "cls":
                labels[key] = text.decode("utf-8", "replace").strip()
            else:
                described[key], groups[key] = _label_and_group(text)
        else:
            passed["other files"] += 1
    keys = [split_name(name)[0] for name in images]
    numbers = np.array(list(images.values()), dtype=np.int64).reshape(-1, 2)
    return TarIndex(
        store_strings(images),
        *(numbers[:, 0].copy(), numbers[:, 1].copy()),
        encode_words(labels.get(key) or described.get(key, "") for key in keys),
        encode_words(groups.get(key, "") for key in keys),
        {reason: count for reason, count in passed.items() if count},
        damage[0] if damage else "",
    )


def split_name(name: str) -> tuple[str, str, str]:
    """Split a member name at the first dot of its last part: key, dot, suffix."""
    folder, slash, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    return folder + slash + stem, dot, suffix


def _refuse_compressed(file: BufferedIOBase, name: str) -> None:
    file.seek(0)
    head = file.read(8)
    for magic, command in COMPRESSED.items():
        if head.startswith(magic):
            raise UserError(
                f"{name} is compressed, so single images cannot be read from it: unpack it to a "
                f"plain .tar ({command}); images hardly shrink anyway"
            )


def _members(
    file: BufferedIOBase, size: int, name: str, damage: list[str]
) -> Iterator[tarfile.TarInfo]:
    """Yield the members that are complete; append what stopped the reading to `damage`.

    Raises:
        UserError: Not even the first member can be read.
    """
    file.seek(0)
    last = -1
    try:
        with tarfile.open(fileobj=_Bounded(file), mode="r:") as tar:  # type: ignore[arg-type]
            while (member := tar.next()) is not None:
                tar.members = []  # tarfile would keep all members in memory
                # Without this check, headers that form a loop would be read forever.
                if member.offset <= last or member.size < 0:
                    raise tarfile.ReadError("a header points backwards")
                last = member.offset
                # A sparse member's size is that of the expanded file, so it may exceed the tar's.
                end = member.offset_data + member.size
                if member.isreg() and not _is_sparse(member) and end > size:
                    raise tarfile.ReadError("cut short")
                yield member
            end = tar.offset
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, not the file's
        if last < 0:
            raise UserError(f"{name} is not a tar file, or damaged from its beginning") from error
        damage.append(f"damaged after byte {last:,} ({_describe(error)})")
        return
    file.seek(end)
    rest = file.read(BLOCK)
    if 0 < len(rest) < BLOCK:
        damage.append(f"cut short at byte {end:,}")
    elif rest.strip(b"\0"):
        damage.append(f"damaged at byte {end:,} (not a header)")
    elif not rest and size:
        damage.append("without an end marker, and may be cut short")


def _is_sparse(member: tarfile.TarInfo) -> bool:
    return member.sparse is not None or member.type == tarfile.GNUTYPE_SPARSE


def _describe(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "too many headers before one member"
    return "cut short" if "unexpected end" in str(error) else str(error)[:80]


def _plain_name(member: tarfile.TarInfo) -> tuple[str, str]:
    """A member's name, and why it is skipped; the reason is empty for plain files."""
    if member.isdir():
        return "", "folders"
    if _is_sparse(member):
        return "", "sparse files"
    if not member.isreg():
        return "", "links" if member.issym() or member.islnk() else "devices and pipes"
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if member.name.startswith("/") or ".." in parts or "\0" in member.name or not parts:
        return "", "names that lead out of the folder"
    if any(part.startswith(".") for part in parts):
        return "", "hidden files"
    return "/".join(parts), ""


def _label_and_group(text: bytes) -> tuple[str, str]:
    """Return `label` and `group` from JSON; empty unless they are strings or integers."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    content = content if isinstance(content, dict) else {}
    label, group = (
        # Not `isinstance`, because True and False are instances of int.
        str(one).strip() if isinstance(one, str) or type(one) is int else ""
        for one in (content.get("label"), content.get("group"))
    )
    return label, group


def to_bytes(index: TarIndex, stamp: Stamp, probe: str) -> bytes:
    """Return the content of an index file.

    It is `MAGIC`, a hash of the rest, a line of JSON, and little-endian arrays: starts, sizes and
    ends of names as int64, codes of labels and groups as int32. The names in UTF-8 come last.

    Args:
        index: The index.
        stamp: Stamp of the tar file.
        probe: The result of `probe_headers`.
    """
    facts = {
        "size": stamp.size,
        "mtime_ns": stamp.mtime_ns,
        "probe": probe,
        "images": len(index.names),
        "label_names": index.labels.table,
        "group_names": index.groups.table,
        "passed_over": index.passed_over,
        "damage": index.damage,
    }
    head = json.dumps(facts).encode() + b"\n"
    numbers = np.stack([index.starts, index.sizes, index.names.ends]).astype("<i8").tobytes()
    codes = np.stack([index.labels.codes, index.groups.codes]).astype("<i4").tobytes()
    whole = head + numbers + codes + index.names.blob
    return MAGIC + hashlib.blake2b(whole, digest_size=DIGEST).digest() + whole


class KeptIndex(NamedTuple):
    """An index from an index file, with the stamp and probe of the tar file that it is of."""

    index: TarIndex
    stamp: Stamp
    probe: str


def from_bytes(content: bytes) -> KeptIndex | None:
    """Parse the content of an index file; None if any bit has changed since it was written."""
    start = len(MAGIC) + DIGEST
    digest, whole = content[len(MAGIC) : start], content[start:]
    if not content.startswith(MAGIC):
        return None
    if hashlib.blake2b(whole, digest_size=DIGEST).digest() != digest:
        return None
    try:
        return _parse(whole)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None  # made by another program, with a matching checksum


def kept_index(file: Path, stamp: Stamp, shard: BufferedIOBase) -> TarIndex | None:
    """Read the index in a file; None if it is missing or damaged, or the shard has changed."""
    try:
        kept = from_bytes(file.read_bytes())
    except OSError:
        return None
    if kept is None or kept.stamp.size != stamp.size:
        return None
    if kept.stamp.mtime_ns is not None:
        return kept.index if kept.stamp == stamp else None
    probe = probe_headers(shard, stamp.size, kept.index.starts)
    return kept.index if probe == kept.probe else None


def _parse(whole: bytes) -> KeptIndex | None:
    head, _, body = whole.partition(b"\n")
    facts = json.loads(head)
    count, size = int(facts["images"]), int(facts["size"])
    starts, sizes, ends = np.frombuffer(body, "<i8", 3 * count).reshape(3, count)
    both = np.frombuffer(body, "<i4", 2 * count, offset=24 * count).reshape(2, count)
    blob = body[32 * count :]  # after three int64 and two int32 for each image
    labels, groups = (
        CodedWords(codes.astype(np.int32), tuple(map(str, facts[name])))
        for codes, name in zip(both, ("label_names", "group_names"), strict=True)
    )
    is_sound = (
        (np.diff(ends, prepend=0) >= 0).all()
        and (ends[-1] if count else 0) == len(blob)
        and (starts >= 0).all()
        and (sizes >= 0).all()
        and (sizes <= MAX_BYTES).all()
        and (starts <= size - sizes).all()
        and all(
            ((one.codes >= -1) & (one.codes < len(one.table))).all() for one in (labels, groups)
        )
    )
    if not is_sound:
        return None
    passed = {str(what): int(number) for what, number in facts["passed_over"].items()}
    index = TarIndex(
        StringTable(blob, ends), starts, sizes, labels, groups, passed, str(facts["damage"])
    )
    mtime = None if facts["mtime_ns"] is None else int(facts["mtime_ns"])
    return KeptIndex(index, Stamp(size, mtime), str(facts["probe"]))


def probe_headers(file: BufferedIOBase, size: int, starts: np.ndarray) -> str:
    """Hash up to `PROBES` headers of a tar file, evenly spread, and its last two blocks.

    Headers contain names and sizes, so if they agree, members are where they were.

    Args:
        file: The tar file.
        size: Size of the tar file in bytes.
        starts: Offsets of its images.
    """
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    if len(starts):
        spread = np.unique(np.linspace(0, len(starts) - 1, PROBES).round().astype(np.int64))
        for start in starts[spread]:
            file.seek(max(0, int(start) - BLOCK))
            digest.update(file.read(BLOCK))
    file.seek(max(0, size - 2 * BLOCK), os.SEEK_SET)
    digest.update(file.read(2 * BLOCK))
    return digest.hexdigest()
