"""Errors with a sentence for the user; here, so that the command line knows them without what raises them."""

from __future__ import annotations


class StoreError(RuntimeError):
    """The store cannot be read or written; the message says why and what would be right."""


class HeadError(RuntimeError):
    """The Ray head cannot be started; the message says why and what to do."""
