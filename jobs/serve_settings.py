"""What the service is told when it is put on a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from jobs.disks import STANDARD_PERCENT
from jobs.log_lines import LogFormat

DEFAULT_PORT = 8700
"""Where a service listens, and is looked for, unless somebody says otherwise."""


@dataclass(frozen=True)
class Listen:
    """Where the service is reached, and how strict its door is."""

    host: str
    port: int
    names: tuple[str, ...]
    """Names under which it may be asked."""
    needs_token: bool

    @property
    def own_url(self) -> str:
        """As this machine reaches it."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104  the address is compared
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True)
class Settings:
    """Where the service keeps its things, and where it listens."""

    store_url: str = field(repr=False)
    """May hold a password."""
    storage: str
    data_home: str
    """Where every node finds the data sets."""
    listen: Listen
    log_format: LogFormat = LogFormat.TEXT
    max_disk_percent: float = STANDARD_PERCENT
    """From which on no job begins."""
    keep_days: float | None = None
    """How long ago a job may have ended before it is deleted; None: it stays."""
    max_gb_per_owner: float | None = None
    """How much an owner's jobs may have left in the storage for another to be taken; None: as much as there is room."""

    @property
    def stored_bytes_per_owner(self) -> int | None:
        """The same in bytes."""
        return None if self.max_gb_per_owner is None else round(1e9 * self.max_gb_per_owner)
