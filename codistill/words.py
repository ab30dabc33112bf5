"""Durations and sizes as people read them."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB")


def duration(seconds: float) -> str:
    """`12 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`: as much as matters."""
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if minutes < 1:
        return f"{whole} s"
    if hours < 1:
        return f"{minutes} min {whole % 60:02d} s"
    if days < 1:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{days} d {hours % 24} h"


def count(number: float, noun: str) -> str:
    """`1 GPU`, `2 GPUs`, `0.5 CPUs`."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def size(num_bytes: float) -> str:
    """`512 B`, `38.4 kB`, `1.2 GB`: in powers of 1000."""
    exponent = 0
    while num_bytes >= 1000 and exponent < len(_UNITS) - 1:
        num_bytes, exponent = num_bytes / 1000, exponent + 1
    return f"{num_bytes:.{1 if exponent else 0}f} {_UNITS[exponent]}"
