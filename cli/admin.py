import typer
app = typer.Typer(no_args_is_help=True)

@app.command("x")
def x() -> None:
    pass
@app.command("y")
def y() -> None:
    pass
