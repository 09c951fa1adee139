"""Figures made of numbers: training curves and the comparison of stages."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from clipfh.reports.drawing import (
    BLUE,
    FONT,
    GREY,
    INK,
    ORANGE,
    PALE,
    SERIES_COLORS,
    new_figure,
    printable,
    save_figure,
)
from clipfh.reports.stage_results import StageResult, stage_label, stage_results

_FIGURE_NAMES = {"rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10"}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LINE_STYLES = ("-", "--", "-.", ":")


def training_curves_figure(
    path: Path, metrics: Sequence[Mapping[str, Any]], *, title: str = "", best_by: str = "val_mAP"
) -> None:
    """Draw loss terms, learning rates and validation figures against the epoch, with BEST marked.

    Args:
        path: the picture to write.
        metrics: the lines of a `metrics.jsonl`, each with `epoch`. Keys that begin with `loss` are loss terms, keys
            that begin with `lr` learning rates, keys that begin with `val` validation figures. Nested dictionaries are
            read as `outer_inner`. Epoch 0 is what training began with. Panels without data are left out; a value may
            be absent or None in some epochs.
        title: above the figure.
        best_by: the validation figure whose first highest value is marked as BEST (`val/mAP` is `val_mAP`).

    Raises:
        InputError: `path` cannot be written.
        ValueError: there is nothing to draw.
    """
    rows = [_flattened(row) for row in metrics]
    names = list(dict.fromkeys(name for row in rows for name in row))
    panels = []
    for prefix, label in (("loss", "training loss"), ("lr", "learning rate"), ("val", "validation")):
        series = {name: _points(rows, name) for name in names if name.startswith(prefix)}
        series = {name: points for name, points in series.items() if points}
        if series and prefix == "lr":
            series, exponent = _scaled(series)
            label += f" (×10{str(exponent).translate(_SUPERSCRIPTS)})"
        if series:
            panels.append((prefix, label, series))
    if not panels:
        raise ValueError("the metrics hold no key that begins with loss, lr or val beside a number in epoch")
    figure = new_figure(3.35 * len(panels) + 0.2, 3.1)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    for axes, (prefix, label, series) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_series(axes, series, prefix)
        axes.set_title(label, loc="left", fontsize=10, fontweight="bold", color=INK, family=FONT)
        if prefix == "val":
            _mark_best(axes, series, best_by)
        if len(series) > 1 or prefix == "val":
            axes.legend(fontsize=8, edgecolor="none", framealpha=0.85)
    if title:
        figure.suptitle(printable(title), fontsize=11, fontweight="bold", x=0.01, ha="left", color=INK, family=FONT)
    save_figure(figure, path)


def _flattened(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}_{inner}": inner_value for inner, inner_value in value.items()})
        else:
            flat[name.replace("/", "_")] = value
    return flat


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(epoch, value) where both are finite numbers."""
    points = [(row.get("epoch"), row.get(name)) for row in rows]
    return [point for point in points if all(isinstance(v, int | float) and math.isfinite(v) for v in point)]


def _scaled(series: Mapping[str, list[tuple[float, float]]]) -> tuple[dict[str, list[tuple[float, float]]], int]:
    """The values divided by a power of ten that makes the highest about 1 to 9, and the exponent."""
    highest = max(value for points in series.values() for _, value in points)
    exponent = math.floor(math.log10(highest) + 0.03) if highest > 0 else 0
    return {name: [(x, y / 10**exponent) for x, y in points] for name, points in series.items()}, exponent


def _draw_series(axes: Axes, series: Mapping[str, list[tuple[float, float]]], prefix: str) -> None:
    marker_size = 3.5 if max(map(len, series.values())) <= 30 else 0
    for index, (name, points) in enumerate(series.items()):
        label = name.removeprefix(prefix).strip("_").replace("_", " ") or "total"
        label = _FIGURE_NAMES.get(label, label)
        epochs, values = zip(*points, strict=True)
        axes.plot(
            epochs,
            values,
            color=SERIES_COLORS[index % len(SERIES_COLORS)],
            linestyle=_LINE_STYLES[index % len(_LINE_STYLES)],
            linewidth=1.6,
            marker="o",
            markersize=marker_size,
            label=printable(label),
        )
    _clean(axes)
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    axes.set_xlabel("epoch", fontsize=9, color=GREY, family=FONT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    if len(drawn := {epoch for points in series.values() for epoch, _ in points}) == 1:
        axes.set_xticks(list(drawn))
    if prefix != "val":
        axes.set_ylim(bottom=0)


def _mark_best(axes: Axes, series: Mapping[str, list[tuple[float, float]]], best_by: str) -> None:
    points = [point for point in series.get(best_by, []) if point[0] > 0]  # 0: what training began with
    if not points:
        return
    epoch, value = max(points, key=lambda point: point[1])  # the first of equals, as training keeps it
    axes.axvline(epoch, color=GREY, linewidth=0.8, linestyle=":")
    _mark(axes, epoch, value, f"BEST {value:.3f} (epoch {epoch:g})")


def _mark(axes: Axes, x: float, y: float, label: str) -> None:
    """A star at what was chosen."""
    style = {"marker": "*", "markersize": 13, "markeredgecolor": INK, "markeredgewidth": 0.7, "linestyle": "none"}
    axes.plot([x], [y], color=ORANGE, label=label, zorder=4, **style)


def interpolation_figure(path: Path, curve: Mapping[float, float], *, title: str = "") -> None:
    """Draw the val figure of the weights between a run's first ones and its best epoch's, with the chosen ones marked.

    Args:
        path: the picture to write.
        curve: share of the best epoch's weights, 0 to 1, to the figure that they are chosen by, a fraction.
        title: above the figure.

    Raises:
        InputError: `path` cannot be written.
    """
    figure = new_figure(4.2, 3.1)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    axes = figure.subplots()
    points = sorted(curve.items())
    _draw_series(axes, {"val_figure": points}, "val")
    alpha, value = max(points, key=lambda point: (point[1], point[0]))
    _mark(axes, alpha, value, f"chosen: {alpha:g}, {value:.3f}")
    axes.set_xlim(-0.04, 1.04)
    axes.set_xticks([at for at, _ in points] if len(points) <= 11 else [0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("share of the fine-tuned weights", fontsize=9, color=GREY, family=FONT)
    axes.set_title("validation", loc="left", fontsize=10, fontweight="bold", color=INK, family=FONT)
    axes.legend(fontsize=8, edgecolor="none", framealpha=0.85)
    if title:
        figure.suptitle(printable(title), fontsize=11, fontweight="bold", x=0.01, ha="left", color=INK, family=FONT)
    save_figure(figure, path)


def stage_comparison_figure(path: Path, summary: pd.DataFrame) -> None:
    """Draw Rank-1 and mAP of the newest evaluation of each stage as dots, one panel a dataset.

    Dots are means over the random splits with bars of one standard deviation, or the official split where no random
    split was evaluated (hollow dots, bars over training seeds).

    Args:
        path: the picture to write.
        summary: the table of `clipfh.reports.summary.read_summary`.

    Raises:
        InputError: `path` cannot be written.
        ValueError: no row of an image-to-image protocol.
    """
    results = [result for result in stage_results(summary) if result.random or result.official]
    datasets = list(dict.fromkeys(result.dataset for result in results))
    if not datasets:
        raise ValueError("the summary holds no image-to-image evaluation")
    panels = [[result for result in results if result.dataset == dataset] for dataset in datasets]
    sizes = [len(panel) for panel in panels]
    figure = new_figure(7.2, 0.75 * len(panels) + 0.5 * sum(sizes) + 0.45)
    figure.set_layout_engine("constrained", h_pad=0.06)
    rows = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=[size + 0.8 for size in sizes])
    for axes, panel, dataset in zip(rows[:, 0], panels, datasets, strict=True):
        _draw_panel(axes, panel)
        axes.set_title(printable(dataset), loc="left", fontsize=10, fontweight="bold", color=INK, family=FONT)
    rows[-1, 0].set_xlabel(
        "percent; random splits, mean and standard deviation (hollow: official split)", fontsize=8.5, color=GREY
    )
    handles, labels = rows[0, 0].get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    rows[0, 0].legend(
        by_label.values(), by_label, fontsize=8.5, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1)
    )
    save_figure(figure, path)


def _draw_panel(axes: Axes, panel: Sequence[StageResult]) -> None:
    several_models = len({result.model for result in panel}) > 1
    labels = []
    for y, result in enumerate(panel):
        parts = [stage_label(result.stage), result.variant, result.model if several_models else "", result.detail]
        labels.append(printable(" · ".join(part for part in parts if part)))
        for name, label, color, marker, offset in (
            ("mAP", "mAP", BLUE, "o", -0.14),
            ("rank1", "Rank-1", ORANGE, "D", 0.14),
        ):
            mean, std = (result.random or result.official)[name]
            axes.errorbar(
                [100 * mean],
                [y + offset],
                xerr=None if math.isnan(std) else [100 * std],
                fmt=marker,
                markersize=5.5,
                color=color,
                markerfacecolor=color if result.random else "white",
                ecolor=INK,
                elinewidth=1,
                capsize=2.5,
                barsabove=True,
                label=label,
            )
            reach = 0 if math.isnan(std) else 100 * std
            axes.annotate(
                f"{100 * mean:.1f}",
                (100 * mean + reach, y + offset),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color=INK,
                family=FONT,
            )
    axes.set_yticks(range(len(panel)), labels)
    axes.set_ylim(len(panel) - 0.5, -0.5)
    axes.set_xlim(0, 105)
    axes.grid(axis="x", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    _clean(axes)


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=8.5, color=GREY, labelcolor=INK, labelfontfamily=FONT)
