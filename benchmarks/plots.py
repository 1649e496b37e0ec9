"""The plots of a run: four PNG files.

python benchmarks/plots.py [RUN.json] [FOLDER]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cases import OURS, Run, median_of, systems_of

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
            ("duration of a task, s", "efficiency"),
            _lines(run, "efficiency/", [OURS, *systems_of(run)]),
            bottom=0.0,
        ),
        _curves(
            folder / "arrays.png",
            "Arrays there and back",
            ("size of an array, bytes", "MB/s"),
            _lines(run, "arrays/", [OURS, *systems_of(run)]),
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
    *,
    log_y: bool = False,
    bottom: float | None = None,
) -> Path | None:
    from matplotlib import pyplot as plt

    if not any(curves.values()):
        return None
    figure, plot = plt.subplots(figsize=(7.2, 4.2), dpi=120)
    others = 0
    for name, points in curves.items():
        if not points:
            continue
        style: dict[str, Any] = {"marker": "o", "markersize": 3.5, "label": name}
        if name == OURS:
            style |= {"color": "black", "linewidth": 2.4, "zorder": 3}
        else:
            style |= {"color": f"C{others}", "linewidth": 1.2}
            others += 1
        plot.plot(*zip(*points, strict=True), **style)
    plot.set_xscale("log")
    if log_y:
        plot.set_yscale("log")
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
