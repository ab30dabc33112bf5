"""The command itself: every verb, in the order in which a newcomer meets them."""

from __future__ import annotations

import typer

from jobs.cli import (
    backup,
    compare,
    completion,
    data,
    demo,
    doctor,
    down,
    lineage,
    local,
    manage,
    offers,
    remote,
    server,
    study,
    token,
    watch,
)

app = typer.Typer(
    name="codistill",
    help="Train neural networks together: replicas that teach each other through stale copies.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for verb in (
    demo.demo,
    local.init,
    local.validate,
    local.run,
    server.serve,
    down.down,
    remote.submit,
    remote.list_jobs,
    remote.show,
    remote.logs,
    watch.watch,
    remote.wait,
    remote.cancel,
    lineage.resume,
    lineage.fork,
    lineage.export,
    manage.queue,
    manage.priority,
    manage.usage,
    manage.delete,
    manage.prune,
    backup.backup,
    backup.restore,
    compare.compare,
    study.study,
    local.replay,
    offers.methods,
    offers.recipes,
    local.schema,
    doctor.doctor,
    completion.completion,
):
    name = "list" if verb is remote.list_jobs else verb.__name__
    app.command(name)(verb)

app.add_typer(data.data, name="data")
app.add_typer(data.register, name="register")
app.add_typer(token.token, name="token")
