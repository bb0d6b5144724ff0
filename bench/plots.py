"""Pictures of what grows with the fleet: measured points and the line through them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from statistics import linear_regression
from typing import TYPE_CHECKING

from bench.report import cell_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from bench.report import Cell, Table
    from bench.saved import Latest

SIZE_INCHES = (8.0, 4.5)
DPI = 110
WIDE = 200
"""With sizes so far apart, the small ones would be one point."""
STEPS = 200
"""Of a line, which is none on a logarithmic axis."""
COLOURS = ("#1f5fa8", "#c4572a", "#2f7d4f", "#7a4fa3")
OFFICIAL_COLOUR = "#666666"


@dataclass(frozen=True, slots=True)
class Growth:
    """What a picture shows, and the columns that it comes from."""

    name: str
    """Of the file."""
    title: str
    part: str
    size: str
    """Column of the number of agents."""
    columns: tuple[str, ...]
    axis: str
    """Of what is measured, with its unit."""
    per_agents: int
    """The slope is told for so many more agents."""
    slope_unit: str
    slope_factor: float = 1.0
    """From the unit of the axis to that of the slope."""
    kind: str = ""
    """Column that says what a row is of; without one, the rows are of one kind."""
    kinds: tuple[str, ...] = ("",)
    """Of them there is a line each."""
    official: str = ""
    """Key of the target whose official figure is that of each agent."""
    official_factor: float = 1.0
    """From the unit of the target to that of the axis."""


@dataclass(frozen=True, slots=True)
class Line:
    """A measured quantity over the number of agents."""

    label: str
    sizes: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def fit(self) -> tuple[float, float]:
        """Slope and start of the straight line with the least squares."""
        slope, start = linear_regression(self.sizes, self.values)
        return slope, start


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture with its figures."""

    growth: Growth
    lines: tuple[Line, ...]
    official: float | None
    """For each agent, in the unit of the axis."""

    @property
    def name(self) -> str:
        """Of the file, without its ending."""
        return self.growth.name

    @property
    def in_words(self) -> str:
        """What the picture shows, for those who do not see it."""
        said = [f"{self.growth.title}, {self.growth.axis}"]
        for line in self.lines:
            points = ", ".join(
                f"{cell_text(value)} at {size:,.0f}"
                for size, value in zip(line.sizes, line.values, strict=True)
            )
            said.append(f"{line.label}: {points}; {self.slope_text(line)}")
        if self.official is not None:
            said.append(self.official_text)
        return ". ".join(said) + "."

    @property
    def official_text(self) -> str:
        """What the official programs take for each agent, in words."""
        each = cell_text(self.official)
        return f"official 1.18.0: {each} {self.growth.axis} for each agent, a process"

    def slope_text(self, line: Line) -> str:
        """Return the slope in words."""
        growth = self.growth
        slope = line.fit[0] * growth.per_agents * growth.slope_factor
        more = "1 agent" if growth.per_agents == 1 else f"{growth.per_agents:,} agents"
        return f"slope {cell_text(slope)} {growth.slope_unit} for {more} more"


GROWTHS = (
    Growth(
        name="memory",
        title="Memory of one process with idle agents",
        part="hosts",
        size="agents",
        columns=("RSS MiB", "PSS MiB", "private MiB"),
        axis="MiB",
        per_agents=1,
        slope_unit="KiB",
        slope_factor=1024,
        official="memory_idle_slope_kib",
        official_factor=1 / 1024,
    ),
    Growth(
        name="processor",
        title="Processor of one process with idle agents",
        part="hosts",
        size="agents",
        columns=("CPU % of a core",),
        axis="% of a core",
        per_agents=1_000,
        slope_unit="%",
        official="cpu_idle_percent",
    ),
    Growth(
        name="search",
        title="Search at the server, slowest of a hundred (p99)",
        part="discovery",
        size="nodes",
        columns=("p99 ms",),
        axis="ms",
        per_agents=1_000,
        slope_unit="µs",
        slope_factor=1000,
        kind="search",
        kinds=("popular tag", "rare tag", "three tags", "no match"),
    ),
    Growth(
        name="start",
        title="Start of one process, until a search finds all of its agents",
        part="hosts",
        size="agents",
        columns=("start s",),
        axis="seconds",
        per_agents=1,
        slope_unit="ms",
        slope_factor=1000,
    ),
)


def plots_of(latest: Latest) -> list[Plot]:
    """Return the pictures that can be drawn of what was measured."""
    plots = (_plot(growth, latest) for growth in GROWTHS)
    return [plot for plot in plots if plot is not None]


def draw_all(latest: Latest, folder: Path) -> list[Path]:
    """Draw the pictures; return their files."""
    return [draw(plot, folder) for plot in plots_of(latest)]


def draw(plot: Plot, folder: Path) -> Path:
    """Draw one picture as PNG; return its file."""
    # Here, as nothing else of the suite needs it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    sizes = plot.lines[0].sizes
    for line, colour in zip(plot.lines, COLOURS, strict=False):
        _draw_line(axes, line, colour, label=f"{line.label}: {plot.slope_text(line)}")
    if plot.official is not None:
        values = [plot.official * size for size in sizes]
        label = plot.official_text
        axes.plot(sizes, values, ":", color=OFFICIAL_COLOUR, label=label)
    _scale(axes, sizes, is_far=plot.official is not None)
    axes.set(title=plot.growth.title, xlabel="agents", ylabel=plot.growth.axis)
    axes.grid(visible=True, color="#dddddd")
    axes.legend(framealpha=0.8, edgecolor="none")
    path = folder / f"{plot.name}.png"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI)
    return path


def _scale(axes: Axes, sizes: Sequence[float], *, is_far: bool) -> None:
    """Choose scales on which everything is seen: what is far apart, by its digits."""
    if is_far or max(sizes) / min(sizes) > WIDE:
        axes.set_xscale("log")
    if is_far:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.minorticks_off()


def _draw_line(axes: Axes, line: Line, colour: str, *, label: str) -> None:
    slope, start = line.fit
    first, last = min(line.sizes), max(line.sizes)
    xs = [first * (last / first) ** (step / STEPS) for step in range(STEPS + 1)]
    axes.plot(line.sizes, line.values, "o", color=colour, label=label)
    axes.plot(xs, [start + slope * x for x in xs], "--", color=colour, linewidth=1)


def _plot(growth: Growth, latest: Latest) -> Plot | None:
    run = latest.run_of(growth.part)
    wanted = {growth.size, *growth.columns, *filter(None, [growth.kind])}
    tables = run.tables if run else []
    table = next((table for table in tables if wanted <= set(table.columns)), None)
    lines = tuple(_lines(growth, table)) if table else ()
    if not lines:
        return None
    official = {goal.key: goal.official for goal in latest.goals}.get(growth.official)
    each = None if official is None else official * growth.official_factor
    return Plot(growth, lines, each)


def _lines(growth: Growth, table: Table) -> Iterator[Line]:
    """Yield the lines that have two points at least."""
    sizes = [_number(cell) for cell in table.column(growth.size)]
    kinds = table.column(growth.kind) if growth.kind else [""] * len(table.rows)
    for kind, column in itertools.product(growth.kinds, growth.columns):
        values = [_number(cell) for cell in table.column(column)]
        found = [
            (size, value)
            for size, value, of in zip(sizes, values, kinds, strict=True)
            if size is not None and value is not None and of == kind
        ]
        if len({size for size, _ in found}) > 1:
            xs, ys = zip(*found, strict=True)
            yield Line(kind or column, xs, ys)


def _number(cell: Cell) -> float | None:
    return float(cell) if isinstance(cell, int | float) else None
