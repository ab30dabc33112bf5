"""`codistill serve`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codistill.data.home import data_home
from jobs.callers import LOCAL
from jobs.cli.exits import CommandError, Exit
from jobs.cli.output import database_url, home, say
from jobs.disks import STANDARD_PERCENT
from jobs.serve_settings import DEFAULT_PORT

if TYPE_CHECKING:
    from jobs.callers import Token
    from jobs.head import Head, HeadSize
    from jobs.log_lines import LogFormat
    from jobs.serve_settings import Listen, Settings

READY_TIMEOUT_S = 60.0
HEAD_CHECK_S = 1.0
TOKENS_FILE_VARIABLE = "CODISTILL_TOKENS_FILE"


def serve(
    on: Annotated[
        str | None, typer.Option(help="Address of a running Ray cluster [default: start one here]", metavar="ADDRESS")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the service")] = DEFAULT_PORT,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but loopback needs tokens (codistill token create)")
    ] = "127.0.0.1",
    host_name: Annotated[
        list[str] | None,
        typer.Option(help="A name under which the service is reached, besides --host; once for each", metavar="NAME"),
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Ask for a token on loopback, too")] = False,
    storage: Annotated[
        Path | None,
        typer.Option(help="Run directories; every node must see it [default: runs in CODISTILL_HOME]", metavar="DIR"),
    ] = None,
    cpus: Annotated[float | None, typer.Option(min=1, help="CPUs for jobs [default: all of this machine]")] = None,
    object_store_mb: Annotated[int, typer.Option(min=100, help="Memory for snapshots on their way")] = 1024,
    max_disk_percent: Annotated[
        float, typer.Option(min=1, max=100, help="How full a disk may be for another job to begin")
    ] = STANDARD_PERCENT,
    max_gb_per_owner: Annotated[
        float | None,
        typer.Option(min=0.001, help="What jobs of an owner may have left for another to be taken [default: no limit]"),
    ] = None,
    keep_days: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="Delete jobs that ended so many days ago, but for those labelled 'keep' [default: keep all]"
        ),
    ] = None,
) -> int:
    """Run the job service. Ctrl-C ends the service, not the jobs; `codistill down` ends all."""
    from jobs.cli.local import require_cluster

    require_cluster("serve")
    from jobs import head as heads
    from jobs.one_service import OWN_HEAD, only_one
    from jobs.serve_settings import Settings

    directory = _prepare_storage(storage)
    listen = _listen(host, port, host_name or (), tokens=tokens)
    settings = Settings(
        database_url(),
        str(directory),
        str(data_home()),
        listen,
        _log_format(),
        max_disk_percent,
        keep_days,
        max_gb_per_owner,
    )
    with only_one(home(), OWN_HEAD if on is None else on):
        _check_store(needs_token=listen.needs_token)
        if on is None:
            size = heads.HeadSize(cpus or float(os.cpu_count() or 1), object_store_bytes=object_store_mb << 20)
            own, moved = _own_head(size, port)
            return _serve_on(own.address, settings, restart=moved, own=own)
        _refuse_silent(on)
        return _serve_on(on, settings, restart=False, own=None)


def _log_format() -> LogFormat:
    from jobs.log_lines import LogFormat

    given = os.environ.get("CODISTILL_LOG_FORMAT") or LogFormat.TEXT
    try:
        return LogFormat(given)
    except ValueError:
        raise CommandError(f"CODISTILL_LOG_FORMAT is {given!r}; use {' or '.join(LogFormat)}", Exit.USAGE) from None


def _listen(host: str, port: int, names: Sequence[str], *, tokens: bool) -> Listen:
    from jobs.door import LOOPBACK_HOSTS, is_loopback
    from jobs.serve_settings import Listen

    known = {name.lower() for name in names} | LOOPBACK_HOSTS | {host.lower()}
    return Listen(host, port, tuple(sorted(known)), needs_token=tokens or not is_loopback(host))


def _prepare_storage(given: Path | None) -> Path:
    from jobs.cli.local import storage_or_default
    from jobs.storage import check_storage

    directory = storage_or_default(given)
    check_storage(directory)
    return directory


def _check_store(*, needs_token: bool) -> None:
    """Bring the store to its newest schema here, where its errors can be said; let in whom the file of tokens names;
    and refuse a door without a key."""
    from jobs.store import Store

    given = _given_tokens()
    store = Store.open(database_url())
    try:
        if given:
            added = store.accounts.adopt(given, by=LOCAL)
            say(f"{len(given)} tokens in {os.environ[TOKENS_FILE_VARIABLE]}, of them {len(added)} new to the store")
        if needs_token and not store.accounts.any_active():
            raise CommandError(
                "beyond loopback everybody who finds the port could come in, and there is no token yet; make one with:"
                f" codistill token create OWNER, or name a file of them in {TOKENS_FILE_VARIABLE}",
                Exit.USAGE,
            )
    finally:
        store.close()


def _given_tokens() -> list[Token]:
    from jobs.token_file import TokenFileError, read_tokens

    path = os.environ.get(TOKENS_FILE_VARIABLE)
    try:
        return read_tokens(Path(path)) if path else []
    except TokenFileError as error:
        raise CommandError(f"{TOKENS_FILE_VARIABLE}: {error}", Exit.USAGE) from None


def _own_head(size: HeadSize, port: int) -> tuple[Head, bool]:
    """This user's head, started if need be, and whether its service must move to another port."""
    from jobs import head as heads

    known = heads.remembered(home())
    if known is not None and heads.is_alive(known):
        if known.http_port != port:
            _refuse_taken(port)
        say(f"going on with the Ray head at {known.address}")
        _let_in(heads.ray_environment(known))
        heads.remember(home(), replace(known, http_port=port))
        return known, known.http_port != port
    _refuse_taken(port)
    if known is not None:
        heads.end(home(), known)  # what is left of a head that broke
    say("starting a Ray head")
    started = heads.start(home(), size, http_port=port)
    _let_in(heads.ray_environment(started))
    return started, False


def _let_in(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    os.environ.pop("RAY_AUTH_TOKEN", None)


def _refuse_taken(port: int) -> None:
    from jobs.head import port_is_free

    if not port_is_free(port):
        raise CommandError(
            f"port {port} of 127.0.0.1 is in use; end what uses it, or choose another --port", Exit.UNAVAILABLE
        )


def _refuse_silent(address: str) -> None:
    """Ray itself would try for minutes before it gives up."""
    import socket

    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        raise CommandError(f"--on {address}: an address is HOST:PORT, as `ray start` shows it", Exit.USAGE)
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except (OSError, OverflowError) as error:
        raise CommandError(
            f"no Ray cluster answers at {address}: {error}; start one there with: ray start --head", Exit.UNAVAILABLE
        ) from None


def _serve_on(address: str, settings: Settings, *, restart: bool, own: Head | None) -> int:
    from jobs import serve as service
    from jobs.head import service_dir

    listen = settings.listen
    try:
        service.attach(address, service_dir(home()))
    except Exception as error:
        message = (
            f"cannot attach to a Ray cluster at {address}: {_last_line(error)}; codistill doctor compares versions"
        )
        raise CommandError(message, Exit.UNAVAILABLE) from error
    ended = threading.Event()
    interrupted = threading.Event()
    # After ray.init, which installs a handler of its own.
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    signal.signal(signal.SIGINT, lambda *_: (interrupted.set(), ended.set()))
    # What a command that was killed left on somebody's cluster would keep its port, and the node of its time.
    if restart or (own is None and service.is_served()):
        service.withdraw()
    if own is None:
        _refuse_taken(listen.port)
    service.deploy(settings)
    _wait_ready(listen.own_url, ended)
    if not ended.is_set():
        say(f"codistill serves at {listen.own_url}; run directories in {settings.storage}")
        say("next: codistill submit SPEC | codistill list")
    _until_ended(ended, own)
    service.withdraw()
    say("the service has ended; the Ray cluster and its jobs go on. codistill serve finds them again")
    if own is not None:
        say("codistill down ends them")
    return Exit.INTERRUPTED if interrupted.is_set() else Exit.DONE


def _until_ended(ended: threading.Event, own: Head | None) -> None:
    from jobs.head import is_alive

    while not ended.wait(HEAD_CHECK_S):
        if own is not None and not is_alive(own):
            say("codistill: the Ray head has gone, and the service with it; codistill serve starts both again")
            sys.stderr.flush()
            # Ray's way out would wait for the cluster that is no more.
            os._exit(Exit.UNAVAILABLE)


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _wait_ready(url: str, ended: threading.Event) -> None:
    """Until the routes answer, which needs no token, and a manager is at work, which the store knows."""
    from jobs.client import Client
    from jobs.store import Store

    give_up, store = time.monotonic() + READY_TIMEOUT_S, Store.open(database_url())
    with Client(url) as client, contextlib.closing(store):
        while not ended.is_set() and not (client.alive() and store.lease.is_held()):
            if time.monotonic() > give_up:
                raise CommandError(f"the service does not answer at {url}; is its port right?", Exit.UNAVAILABLE)
            time.sleep(0.1)
