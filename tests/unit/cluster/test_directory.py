"""Where the exchange directory runs; what it answers is tested with the transports."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster import directory


def test_the_directory_is_pinned_to_its_drivers_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without CPUs, such as a service's, would otherwise be as good as any; and it comes and goes."""
    asked: dict[str, Any] = {}

    def options(**given: Any) -> Any:
        asked.update(given)
        return SimpleNamespace(remote=lambda: "handle")

    monkeypatch.setattr(directory.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "0f"))
    monkeypatch.setattr(directory.ray, "remote", lambda _: SimpleNamespace(options=options))
    assert directory.start_directory("codistill-j-1") == "handle"
    assert asked["label_selector"] == {"ray.io/node-id": "0f"}
    assert (asked["namespace"], asked["num_cpus"]) == ("codistill-j-1", 0)
