"""The output for people: one line per event and, in a terminal, a live summary below."""

from datetime import datetime
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from deploy.local.log_line import LogLine
from deploy.local.survey import Survey
from protos.process.visible_text import visible
from protos.tokenbroker.v1 import token_broker_pb2 as pb

_NAME_WIDTH: Final = 10
_BAR_WIDTH: Final = 30
_STYLES: Final = {"warning": "yellow", "error": "red", "critical": "bold red"}
_COLOURS: Final = ("cyan", "green", "magenta", "blue", "bright_cyan", "bright_green")


class Screen:
    """Standard output for events, standard error for the reason of a failure."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False)
        self._live: Live | None = None
        self._colours: dict[str, str] = {}

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal to draw a summary in."""
        return self._console.is_terminal

    def open(self) -> None:
        """Begins the live summary if there is a terminal."""
        if self.is_live:
            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()

    def close(self) -> None:
        """Ends the live summary."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """Prints a line of the stack itself."""
        self.show_line("stack", LogLine(text))

    def show_line(self, name: str, line: LogLine) -> None:
        """Prints a line of the program *name*."""
        colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
        text = Text(f"{datetime.now().astimezone():%H:%M:%S} ", style="dim")
        text.append(f"{name:<{_NAME_WIDTH}}", style=f"not dim {colour}")
        text.append(" │ ")
        text.append(visible(str(line)), style=f"not dim {_STYLES.get(line.level, '')}")
        self._console.print(text, soft_wrap=True)

    def show(self, survey: Survey, footing: str) -> None:
        """Draws the live summary; without a terminal, prints it as a line."""
        if self._live is None:
            self.note(f"{_bucket_line(survey.bucket)} · {footing}")
            return
        lines = [bucket_bar(survey.bucket), Text(_bucket_line(survey.bucket)), Text(footing)]
        # Narrower than the terminal: the line must not wrap when a key is typed.
        panel = Panel(Group(*lines), title="Keepa token broker", expand=False)
        self._live.update(panel, refresh=True)


def bucket_bar(bucket: pb.Bucket | None) -> Text:
    """A bar of free, reserved and missing tokens."""
    if bucket is None or not bucket.capacity:
        return Text("─" * _BAR_WIDTH, style="dim")
    held = max(0, min(bucket.reserved, bucket.balance))
    free = max(0, bucket.balance - held)
    cells = [round(_BAR_WIDTH * part / bucket.capacity) for part in (free, held)]
    rest = max(0, _BAR_WIDTH - sum(cells))
    return Text.assemble(
        ("█" * cells[0], "green"), ("▒" * cells[1], "yellow"), ("░" * rest, "dim")
    )


def _bucket_line(bucket: pb.Bucket | None) -> str:
    if bucket is None:
        return "broker not answering"
    if bucket.state == pb.BUCKET_STATE_SYNCING:
        return "broker waits for Keepa's first answer"
    next_s = bucket.next_refill_in.ToMilliseconds() / 1000
    return (
        f"{bucket.balance} of {bucket.capacity} tokens, +{bucket.refill_rate} in {next_s:.1f} s"
        f" · {bucket.reserved} reserved · {bucket.waiting} waiting"
        f" · {bucket.totals.spent_tokens} spent · {bucket.totals.refusals} refused"
        f" · drift {bucket.drift_tokens}"
    )
