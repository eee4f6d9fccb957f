"""`vla record`: what the recorder does, by hand. Goals of the action `execute` are recorded without asking."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated, Any, Optional
from urllib.parse import unquote, urlparse

import typer

from vla_ros.cli import report
from vla_ros.cli.options import Json, Namespace
from vla_ros.data.episode import State

if TYPE_CHECKING:
    from vla_ros.cli.client import GraphClient

app = typer.Typer(no_args_is_help=True, help="Make episodes: rosbag2 folders of everything that is said in the graph.")
Name = Annotated[str, typer.Option(help="Folder of the episode; without one, time and text make it.")]
Text = Annotated[str, typer.Option(help="What the episode shows; without it, the instruction that is heard.")]
Operator = Annotated[Optional[str], typer.Option(help="Who makes it; without it, your login name.")]  # noqa: UP045
ANSWER_S = 15.0  # longer than the recorder waits for its disk


def ask(client: GraphClient, command: str, **fields: Any) -> dict[str, Any]:
    """The answer as facts; a refusal is a CliError."""
    from vla_ros.srv import Record

    request = Record.Request(command=getattr(Record.Request, command), **fields)
    answer = client.call(Record, "record", request, ANSWER_S)
    facts = {
        "accepted": answer.accepted,
        "reason": answer.reason,
        "episode": unquote(urlparse(answer.uri).path),
        "state": State(answer.state).name.lower(),
        "duration_s": round(answer.duration, 3),
        "messages": answer.messages,
        "drops": answer.drops,
        "size_mb": round(answer.size / 1e6, 3),
    }
    if not answer.accepted:
        raise report.CliError(f"refused: {answer.reason}", **facts)
    return facts


def _run(namespace: str, as_json: bool, command: str, words: str, **fields: Any) -> None:
    from vla_ros.cli.client import GraphClient

    with report.errors(as_json), GraphClient(namespace) as client:
        facts = ask(client, command, **fields)
        if facts["reason"]:
            report.stderr.print(f"note: {facts['reason']}", markup=False, soft_wrap=True)
        report.result(as_json, facts, words.format(**facts))


SIZE = "{duration_s:.1f} s, {messages} messages, {drops} dropped, {size_mb:.1f} MB"


def login() -> str:
    """Who sits here."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return ""


@app.command()
def start(
    text: Text = "", name: Name = "", operator: Operator = None, namespace: Namespace = "vla", as_json: Json = False
) -> None:
    """Begin an episode."""
    who = login() if operator is None else operator
    _run(namespace, as_json, "START", "recording {episode}", text=text, name=name, operator_name=who)


@app.command()
def stop(namespace: Namespace = "vla", as_json: Json = False) -> None:
    """End the episode; keep or discard it then."""
    _run(namespace, as_json, "STOP", f"stopped {{episode}}: {SIZE}. `vla record keep` or `vla record discard`")


@app.command()
def keep(
    success: Annotated[
        Optional[bool], typer.Option("--success/--failure", help="Was the task fulfilled? Without it: not judged.")  # noqa: UP045
    ] = None,
    outcome: Annotated[str, typer.Option(help="How it ended: done, timeout, stopped, ...")] = "",
    namespace: Namespace = "vla",
    as_json: Json = False,
) -> None:
    """End the episode if it is open, and keep it."""
    _run(
        namespace, as_json, "KEEP", f"kept {{episode}}: {SIZE}",
        success=-1 if success is None else int(success), outcome=outcome,
    )  # fmt: skip


@app.command()
def discard(namespace: Namespace = "vla", as_json: Json = False) -> None:
    """End the episode if it is open, and delete it."""
    _run(namespace, as_json, "DISCARD", "deleted")


@app.command()
def status(namespace: Namespace = "vla", as_json: Json = False) -> None:
    """What the recorder is doing."""
    _run(namespace, as_json, "STATUS", f"{{state}} {{episode}} ({SIZE})")


@app.command()
def last(
    seconds: Annotated[float, typer.Argument(min=0.0, max=600.0, help="How much; 0: all that is in memory.")] = 0.0,
    text: Text = "",
    name: Name = "",
    operator: Operator = None,
    namespace: Namespace = "vla",
    as_json: Json = False,
) -> None:
    """Keep what has just happened: the last seconds, from memory, as an episode."""
    who = login() if operator is None else operator
    _run(
        namespace, as_json, "LAST", f"kept {{episode}}: {SIZE}",
        seconds=seconds, text=text, name=name, operator_name=who,
    )  # fmt: skip
