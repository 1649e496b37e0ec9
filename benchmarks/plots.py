"""The plots of a run: four PNG files.

python benchmarks/plots.py [RUN.json] [FOLDER]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cases import OURS, Run, median_of, systems_of

_MARKERS = "s^vDPX*<>"


def seconds_text(value: float) -> str:
    """A duration as people write it: 0.0001 is 100 us."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if value >= 0.999 * factor:
            return f"{value / factor:g} {unit}"
    return f"{value / 1e-6:g} us"


def bytes_text(value: float) -> str:
    """A size as people write it."""
    for unit, factor in (("MB", 1e6), ("KB", 1e3)):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value:g} B"


def count_text(value: float) -> str:
    """A number with its thousands apart."""
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def share_text(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.0f} %"


_RESULTS = Path(__file__).resolve().parent / "results"


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw what the run has points for; gives the files."""
    import matplotlib as mpl

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [
        _curves(
            folder / "efficiency.png",
            "Share of two workers' time that is work",
            ("duration of a task", "work in two workers' time"),
            _lines(run, "efficiency/", [OURS, *systems_of(run)]),
            (seconds_text, share_text),
            bottom=0.0,
        ),
        _curves(
            folder / "arrays.png",
            "Arrays there and back",
            ("size of an array", "MB/s"),
            _lines(run, "arrays/", [OURS, *systems_of(run)]),
            (bytes_text, count_text),
            log_y=True,
        ),
        _curves(
            folder / "queue.png",
            "Long queues of empty tasks",
            ("tasks in the queue", "tasks/s"),
            {
                "requests": _points(run, "queue/request/", OURS),
                "drain": _points(run, "queue/drain/", OURS),
            },
            (count_text, count_text),
            bottom=0.0,
        ),
        _curves(
            folder / "slaves.png",
            "Many connected slaves (simulated), empty tasks",
            ("slaves", "tasks/s"),
            {
                "in batches": _points(run, "crowd/rate/", OURS),
                "one task per message": _points(run, "crowd/single/", OURS),
            },
            (count_text, count_text),
            log_y=True,
        ),
    ]
    return [path for path in drawn if path is not None]


def _lines(run: Run, prefix: str, systems: list[str]) -> dict[str, list[tuple[float, float]]]:
    return {system: _points(run, prefix, system) for system in systems}


def _points(run: Run, prefix: str, system: str) -> list[tuple[float, float]]:
    points = []
    for figure in run["figures"]:
        value = median_of(run, figure, system) if figure.startswith(prefix) else None
        if value is not None:
            points.append((float(figure.rpartition("/")[2]), value))
    return sorted(points)


def _curves(
    path: Path,
    title: str,
    axes: tuple[str, str],
    curves: dict[str, list[tuple[float, float]]],
    texts: tuple[Callable[[float], str], Callable[[float], str]],
    *,
    log_y: bool = False,
    bottom: float | None = None,
) -> Path | None:
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    if not any(curves.values()):
        return None
    figure, plot = plt.subplots(figsize=(7.2, 4.2), dpi=120)
    others = 0
    for name, points in curves.items():
        if not points:
            continue
        style: dict[str, Any] = {"markersize": 4.5, "label": name}
        if name == OURS:
            style |= {"color": "black", "linewidth": 2.4, "zorder": 3, "marker": "o"}
        else:
            marker = _MARKERS[others % len(_MARKERS)]  # colours alone are too much alike
            style |= {"color": f"C{others}", "linewidth": 1.2, "marker": marker}
            others += 1
        plot.plot(*zip(*points, strict=True), **style)
    plot.set_xscale("log")
    places = sorted({x for points in curves.values() for x, _ in points})
    plot.set_xticks(places, [texts[0](x) for x in places])
    plot.xaxis.set_minor_locator(ticker.NullLocator())
    if log_y:
        plot.set_yscale("log")
        plot.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        plot.yaxis.set_minor_locator(ticker.NullLocator())
    plot.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: texts[1](y)))
    if bottom is not None:
        plot.set_ylim(bottom=bottom)
    plot.set_xlabel(axes[0])
    plot.set_ylabel(axes[1])
    plot.set_title(title, fontsize=11)
    plot.grid(alpha=0.3)
    plot.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, nargs="?", default=_RESULTS / "latest.json")
    parser.add_argument("folder", type=Path, nargs="?", default=_RESULTS)
    options = parser.parse_args()
    for path in draw(json.loads(options.run.read_text(encoding="utf-8")), options.folder):
        print(path)


if __name__ == "__main__":
    main()
