"""Progress on stderr: a line per finished step, a bar while one is running."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class RichProgress:
    """The `edgemm.pipeline.Progress` of the command line."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: tuple[str, TaskID] | None = None

    def __enter__(self) -> RichProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def bar(self, step: str, done: int, total: int) -> None:
        """Shows how far `step` is."""
        if self._task is None or self._task[0] != step:
            self._clear()
            self._task = (step, self._progress.add_task(f"{step:<11}", total=total, count=""))
        self._progress.update(self._task[1], completed=done, total=total, count=f"{done:,}/{total:,}")

    def status(self, step: str, text: str) -> None:
        """Shows what `step` is doing."""
        self._clear()
        self._task = (step, self._progress.add_task(f"{step:<11} {text}", total=None, count=""))

    def step(self, step: str, text: str) -> None:
        """Prints what `step` came to."""
        self._clear()
        self._console.print(f"{step:<11} {text}", highlight=False, markup=False, soft_wrap=True)

    def _clear(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task[1])
            self._task = None
