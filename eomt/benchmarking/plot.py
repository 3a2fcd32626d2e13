"""Plot of quality against speed, like Figure 1 of the paper."""

from collections.abc import Sequence
from pathlib import Path


def plot_quality_and_speed(points: Sequence[dict], path: Path, metric: str, device: str) -> None:
    """Points → a picture (png, pdf or svg by the file's suffix).

    points: {"point", "family", "images_per_second", "quality", "parameters"}. Area is the number of parameters; a
    family's points are joined in order of size.
    """
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.add_subplot()
    markers = "oDs^vPX*"
    families = list(dict.fromkeys(point["family"] for point in points))
    largest = max(point["parameters"] for point in points)
    for index, family in enumerate(families):
        members = sorted((p for p in points if p["family"] == family), key=lambda p: p["parameters"])
        speeds, qualities = ([point[key] for point in members] for key in ("images_per_second", "quality"))
        (line,) = axes.plot(speeds, qualities, color=f"C{index % 10}", linewidth=1.5, alpha=0.7, zorder=1)
        areas = [40 + 360 * point["parameters"] / largest for point in members]
        axes.scatter(
            speeds, qualities, areas, color=line.get_color(), marker=markers[index % 8], edgecolor="white", zorder=2,
            label=family,
        )  # fmt: skip
        for point, area in zip(members, areas):
            axes.annotate(
                f"{point['point']}, {point['parameters'] / 1e6:.0f}M", (point["images_per_second"], point["quality"]),
                xytext=(0, 4 + area**0.5 / 2), textcoords="offset points", fontsize=9, ha="center",
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.22, y=0.18)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.set_xlabel(f"images per second, batch 1 ({device})")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(frameon=False, loc="lower left")
    for handle in legend.legend_handles:
        handle.set_sizes([60])
    figure.savefig(path, dpi=160, facecolor="white")
