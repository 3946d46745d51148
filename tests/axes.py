"""What the tests of figures read off an axis."""

from matplotlib.axes import Axes


def named(axis: Axes, label: str) -> list[list[float]]:
    """Heights of every line of a label."""
    return [[float(value) for value in line.get_ydata()] for line in axis.lines if line.get_label() == label]
