"""Files out of whatever somebody already has: a directory, a .deb, a .tgz, or the file itself.

Nothing is unpacked to the disk and no package tool is needed, so that a .deb can be read on any system.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from codistill.data.card import file_digest
from codistill.data.home import DataError
from codistill.data.sources.base import Source

GZIP_MAGIC, DEB_MAGIC = b"\x1f\x8b", b"!<arch>\n"
AR_HEADER_BYTES = 60
VERSION_FILES = ("control", "package.json")
UNREADABLE = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, tarfile.TarError)


@dataclass(frozen=True)
class Found:
    """The files a source needs, decompressed, and what is known about where they were."""

    files: dict[str, bytes]
    version: str | None = None
    """Of the package, when the files came from one."""
    archive_sha256: str | None = None


def find_files(source: Source, path: Path) -> Found:
    """The files of `source` in `path`; raises `DataError`, which says what was looked for, when they are not there."""
    if path.is_dir():
        return _in_directory(source, path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; give a directory or file that holds {_wanted(source)}")
    try:
        with path.open("rb") as file:
            head = file.read(512)
        if head.startswith(DEB_MAGIC) or _is_tar(path):
            return _in_archive(source, path)
        if len(source.files) == 1:
            return Found({source.files[0]: _decompressed(path.read_bytes())})
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read: {error}; is the download complete?") from None
    raise DataError(f"{path} is one file, '{source.name}' needs {_wanted(source)}: give the directory that holds them")


def _in_directory(source: Source, path: Path) -> Found:
    files = {file.name: file for file in sorted(path.rglob("*")) if _key(source, file.name) and file.is_file()}
    found = {str(_key(source, name)): file for name, file in files.items()}
    if len(found) == len(source.files):
        try:
            return Found({name: _decompressed(file.read_bytes()) for name, file in found.items()})
        except UNREADABLE as error:
            raise DataError(f"{path}: a file cannot be read: {error}; is the download complete?") from None
    archives = sorted(file for kind in ("deb", "tgz") for file in path.glob(f"{source.package.name}[-_]*.{kind}"))
    if archives:
        return find_files(source, archives[-1])
    missing = [name for name in source.files if name not in found]
    raise DataError(f"{path} does not hold {', '.join(missing)}; give one that holds {_wanted(source)}")


def _in_archive(source: Source, path: Path) -> Found:
    files: dict[str, bytes] = {}
    version = None
    for name, content in _members(path, (*source.files, *VERSION_FILES)):
        key = _key(source, name)
        if key:
            files[key] = _decompressed(content)
        elif name in VERSION_FILES and version is None:
            version = _version(name, content)
    missing = [name for name in source.files if name not in files]
    if missing:
        raise DataError(f"{path} does not hold {', '.join(missing)}; give one that holds {_wanted(source)}")
    return Found(files, version, file_digest(path))


def _members(path: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Base name and content of the members of an archive that are called one of `names`, compressed or not."""
    with path.open("rb") as file:
        deb = file.read(len(DEB_MAGIC)) == DEB_MAGIC
    tars = _tars_of_deb(path.read_bytes()) if deb else [io.BytesIO(path.read_bytes())]
    for content in tars:
        with tarfile.open(fileobj=content) as tar:
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                opened = tar.extractfile(member) if member.isfile() and _plain(name) in names else None
                if opened is not None:
                    yield name, opened.read()


def _tars_of_deb(content: bytes) -> Iterator[io.BytesIO]:
    """A .deb is an ar archive: headers of 60 bytes, contents padded to an even length; two of them are tars."""
    at = len(DEB_MAGIC)
    while at + AR_HEADER_BYTES <= len(content):
        header = content[at : at + AR_HEADER_BYTES]
        name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
        at += AR_HEADER_BYTES
        if ".tar" in name:
            part = content[at : at + size]
            yield io.BytesIO(_zstd(part) if name.endswith(".zst") else part)
        at += size + size % 2


def _zstd(content: bytes) -> bytes:
    with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
        return stream.read()


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (EOFError, zlib.error, lzma.LZMAError):  # compressed and cut off: not a tar that can be read
        return False


def _decompressed(content: bytes) -> bytes:
    return gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content


def _version(name: str, content: bytes) -> str | None:
    if name == "package.json":
        return str(json.loads(content).get("version"))
    line = re.search(rb"^Version: *(\S+)", content, re.MULTILINE)
    return line[1].decode() if line else None


def _plain(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".dz")


def _key(source: Source, name: str) -> str | None:
    return _plain(name) if _plain(name) in source.files else None


def _wanted(source: Source) -> str:
    return f"{', '.join(source.files)} (or with .gz, or .dz), or the package {source.package.name}"
