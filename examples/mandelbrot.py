"""A picture of the Mandelbrot set, computed in bands of rows: tasks of very different length.

Rows through the middle of the set take much longer than those at its edge. Slaves take a new band
whenever they are free, so all stay busy without any planning. Needs numpy, pillow and rich:

    python examples/mandelbrot.py                                  # writes mandelbrot.png
    python examples/mandelbrot.py --width 1800 --slaves 4 large.png
"""

import argparse

import numpy as np
from PIL import Image
from rich.progress import track

from masterslave import MasterProcess, SlaveProcess, runJob

LEFT, RIGHT, BOTTOM, TOP = -2.2, 0.8, -1.125, 1.125  # the part of the complex plane
BAND = 8  # rows per task: few enough to share well, enough to be worth sending


def arguments():
    parser = argparse.ArgumentParser(description="Draw the Mandelbrot set.")
    parser.add_argument("path", nargs="?", default="mandelbrot.png")
    parser.add_argument("--width", type=int, default=480, help="of the picture, in pixels")
    parser.add_argument("--slaves", type=int, default=2, help="to start on this machine")
    return parser.parse_args()


class Master(MasterProcess):
    def run(self):
        args = arguments()
        height = args.width * 3 // 4
        x = np.linspace(LEFT, RIGHT, args.width)
        y = np.linspace(TOP, BOTTOM, height)  # the first row of a picture is its top
        firsts = range(0, height, BAND)
        ids = self.requestTasks("band", [(x, y[first : first + BAND]) for first in firsts])
        first_row = dict(zip(ids, firsts, strict=True))

        picture = np.empty((height, args.width, 3), np.uint8)
        for task_id, _, band in track(self.results("band"), "computing", total=len(ids)):
            first = first_row[task_id]
            picture[first : first + len(band)] = band
        Image.fromarray(picture).save(args.path)
        print(f"wrote {args.path}: {args.width} x {height} pixels in {len(ids)} bands")
        self.printStatistics()


class Painter(SlaveProcess):
    def do_band(self, x, y):
        """The colours of the points x + iy, shape (len(y), len(x), 3)."""
        return colours(escape_times(x[np.newaxis, :] + 1j * y[:, np.newaxis]))


def escape_times(c, limit=300):
    """After how many steps of z -> z^2 + c each point leaves for good, made smooth; inside: 0."""
    z = np.zeros_like(c)
    times = np.zeros(c.shape)
    inside = np.ones(c.shape, bool)
    for step in range(1, limit + 1):
        z[inside] = z[inside] ** 2 + c[inside]
        leaving = inside & (np.abs(z) > 16)  # well beyond 2, for a smooth transition
        times[leaving] = step - np.log2(np.log(np.abs(z[leaving])) / np.log(16))
        inside &= ~leaving
    return times


def colours(times):
    """From dark blue to white and back as the times grow; black inside the set."""
    phase = 0.55 * np.sqrt(times)[..., np.newaxis] + np.array([3.4, 3.8, 4.4])
    shades = 127.5 * (1 + np.sin(phase))
    return np.where(times[..., np.newaxis] > 0, shades, 0).astype(np.uint8)


if __name__ == "__main__":
    runJob("mandelbrot", Master, Painter, launch_slaves=arguments().slaves)
