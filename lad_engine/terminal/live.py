"""Draws a canvas as it refines: masked, new, changed and settled tokens told apart, confidence from red to green."""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ..contracts import StepEvent

# Most pieces begin with their space, so a mask does too: words then appear where the mask stood.
MASK_BLOCK = " \u2591\u2591\u2591"
END_MARK, NEWLINE = "\u23f9", "\u21b5"
FRAMES_PER_SECOND = 20
TITLE_WIDTH = 20
# How each status reads beside its colour; "settled" is the plain one.
STATUS_STYLES = {
    "fixed": Style(color="blue"),
    "masked": Style(color="bright_black"),
    "new": Style(bold=True, underline=True),
    "changed": Style(bold=True, reverse=True),
    "settled": Style(),
}


class CanvasPainter:
    """Turns StepEvents into coloured text.

    piece: id to the text it stands for; mask_id, eos_ids: ids with a sign of their own.
    """

    def __init__(self, piece: Callable[[int], str], mask_id: int, eos_ids: Collection[int]) -> None:
        self._piece, self._mask_id, self._eos_ids = piece, mask_id, frozenset(eos_ids)

    def canvas(self, event: StepEvent, one_line: bool = False) -> Text:
        """Return the answer region after a step; the run of end tokens it finishes with is one sign with a count."""
        tail = self._tail_start(event)
        text = Text()
        for token, confidence, status in zip(event.token_ids[:tail], event.confidences, event.status, strict=False):
            style = STATUS_STYLES.get(status, STATUS_STYLES["settled"])
            if token == self._mask_id and status != "fixed":
                text.append(MASK_BLOCK if text else MASK_BLOCK.lstrip(), STATUS_STYLES["masked"])
            elif token in self._eos_ids:
                text.append(END_MARK, style)
            else:
                # A run of newlines breaks the line once, or an undecided canvas would fill the screen with them.
                is_blank = bool(text) and not text.plain.rpartition("\n")[2].strip(NEWLINE)
                breaks = "" if one_line or is_blank else "\n"
                shown = printable(self._piece(token)).replace("\n", NEWLINE + breaks)
                text.append(shown, style if status == "fixed" else style + confidence_style(confidence))
        rest = len(event.token_ids) - tail
        if rest:
            text.append(f" {END_MARK} \u00d7{rest}", STATUS_STYLES["masked"])
        return text

    def answer_tokens(self, event: StepEvent) -> int:
        """Return how many tokens a reader sees: those before the end that are not masked."""
        end = next((i for i, token in enumerate(event.token_ids) if token in self._eos_ids), len(event.token_ids))
        return sum(token != self._mask_id for token in event.token_ids[:end])

    def header(self, event: StepEvent) -> RenderableType:
        """Return the line with the step counter, a bar and the speed."""
        tokens = self.answer_tokens(event)
        seconds = event.elapsed_ms / 1e3
        row = Table.grid(padding=(0, 2))
        row.add_row(
            Text(f"step {event.step + 1:>{len(str(event.steps))}}/{event.steps}", "bold"),
            ProgressBar(total=event.steps, completed=event.step + 1, width=24, complete_style="cyan", finished_style="cyan"),
            Text(f"{tokens} of {len(event.token_ids)} tokens", "dim"),
            Text(f"{tokens / seconds if seconds > 0 else 0:.1f} tokens/s", "dim"),
            Text(f"{seconds:.1f} s", "dim"),
        )
        return row

    def step_line(self, event: StepEvent, numbered: bool) -> Text:
        """Return one line for --show-steps."""
        name = f"[{event.index + 1}] " if numbered else ""
        return Text(f"{name}step {event.step + 1:>{len(str(event.steps))}}/{event.steps}  ", "dim") + self.canvas(event, one_line=True)

    def _tail_start(self, event: StepEvent) -> int:
        start = len(event.token_ids)
        while start and event.token_ids[start - 1] in self._eos_ids and event.status[start - 1] != "fixed":
            start -= 1
        return start


class LiveView:
    """A context that redraws the canvases of one batch in place and leaves nothing behind."""

    def __init__(self, console: Console, painter: CanvasPainter, titles: list[str]) -> None:
        self._painter, self._titles = painter, titles
        self._latest: dict[int, StepEvent] = {}
        self._live = Live(console=console, transient=True, refresh_per_second=FRAMES_PER_SECOND, vertical_overflow="crop")

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.__exit__(kind, error, trace)

    def update(self, event: StepEvent) -> None:
        """Show the state of one sequence after a step."""
        self._latest[event.index] = event
        self._live.update(self.picture(), refresh=event.is_last)

    def picture(self) -> RenderableType:
        """Return what is on the screen now: one canvas in full, or one line for each of several."""
        if not self._latest:
            return Text()
        if len(self._titles) == 1:
            (event,) = self._latest.values()
            return Group(self._painter.header(event), Text(), self._painter.canvas(event), Text(), legend())
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(no_wrap=True, width=TITLE_WIDTH, overflow="ellipsis")
        table.add_column(no_wrap=True, width=max(len(f"{event.step + 1}/{event.steps}") for event in self._latest.values()))
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for index in sorted(self._latest):
            event = self._latest[index]
            title = Text(" ".join(printable(self._titles[index % len(self._titles)]).split()), "bold")
            table.add_row(title, Text(f"{event.step + 1}/{event.steps}", "dim"), self._painter.canvas(event, one_line=True))
        return Group(table, Text(), legend())


def legend() -> Text:
    """Return the line that explains the signs."""
    text = Text().append(f"{MASK_BLOCK.lstrip()} masked", STATUS_STYLES["masked"])
    for status in ("new", "changed", "settled"):
        text.append("   ").append(status, STATUS_STYLES[status])
    text.append("   ").append("given", STATUS_STYLES["fixed"])
    text.append("   confidence ", "dim")
    for fifth in range(6):
        text.append("\u2588", confidence_style(fifth / 5))
    return text


def confidence_style(confidence: float) -> Style:
    """Return red for 0, yellow for a half, green for 1."""
    share = min(max(confidence, 0.0), 1.0) if confidence == confidence else 0.0
    red, green = (220, round(400 * share)) if share < 0.5 else (round(400 * (1 - share)) + 20, 200)
    return Style(color=f"rgb({red},{green},60)")


def printable(text: str) -> str:
    """Return `text` without control characters: a model may write escape codes, and a terminal would obey them."""
    return "".join(letter if letter in "\n\t" or not (ord(letter) < 32 or 127 <= ord(letter) < 160) else "\ufffd" for letter in text)
