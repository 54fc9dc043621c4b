"""The `fedagg admin` commands."""

import typer

from cli.admin.audit import audit_app
from cli.admin.keys import create_ca, enrollment_token
from cli.admin.privacy import privacy_app
from cli.admin.tasks import models_app, rounds_app, tasks_app

app = typer.Typer(
    help="Look into and steer a running server; keys, tokens and the audit log.",
    no_args_is_help=True,
)
app.add_typer(tasks_app, name="tasks")
app.add_typer(rounds_app, name="rounds")
app.add_typer(models_app, name="models")
app.add_typer(privacy_app, name="privacy")
app.add_typer(audit_app, name="audit")
app.command("create-ca")(create_ca)
app.command("enrollment-token")(enrollment_token)
