"""Reading logs back: all files of a replica over all attempts and incarnations, as one text with byte offsets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codistill.run_dir import RunDir

DRIVER = "driver"
MAX_BYTES = 1 << 20
"""Most that one answer carries."""


@dataclass(frozen=True)
class LogText:
    """A piece of a log."""

    data: bytes
    next_offset: int
    """Where to go on: the number of bytes up to and including this piece."""

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")


def read_log(run: RunDir, replica: str, *, tail_lines: int | None = None, offset: int | None = None) -> LogText:
    """The last `tail_lines` lines, or what follows the first `offset` bytes; at most `MAX_BYTES`. Empty when
    nothing was written yet."""
    files = _files(run, replica)
    sizes = [path.stat().st_size for path in files]
    total = sum(sizes)
    begin = max(0, total - MAX_BYTES) if offset is None else min(offset, total)
    data = _slice(files, sizes, begin, min(total, begin + MAX_BYTES))
    end = begin + len(data)
    if tail_lines is not None:
        data = b"".join(data.splitlines(keepends=True)[-tail_lines:]) if tail_lines > 0 else b""
    return LogText(data, end)


def _files(run: RunDir, replica: str) -> list[Path]:
    found: list[Path] = []
    for fence in run.fences():
        if replica == DRIVER:
            found.append(run.attempt(fence) / "driver.log")
        else:
            found += sorted(run.logs(fence, replica).glob("*.log"), key=_incarnation)
    return [path for path in found if path.is_file()]


def _incarnation(path: Path) -> tuple[int, str]:
    return (int(path.stem), "") if path.stem.isdigit() else (1 << 31, path.stem)


def _slice(files: list[Path], sizes: list[int], begin: int, end: int) -> bytes:
    parts: list[bytes] = []
    start = 0
    for path, size in zip(files, sizes, strict=True):
        low, high = max(begin, start), min(end, start + size)
        if low < high:
            with path.open("rb") as file:
                file.seek(low - start)
                parts.append(file.read(high - low))
        start += size
    return b"".join(parts)
