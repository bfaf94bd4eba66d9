"""Results, gallery and report of an explanation of your own data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from torchvision.transforms.functional import to_pil_image

from cf_utils.core import Counterfactuals, files, to_list
from cf_utils.datasets.tabular import Table
from cf_utils.harness import pages
from cf_utils.harness.figures import render_png
from cf_utils.harness.own_case import Case
from cf_utils.viz import plots

TEMPLATE = Path(__file__).with_name("own_report.html")
PER_PAGE, PAGES = 8, 3  # items of the gallery
MAX_BYTES = 500_000  # per page of the gallery
MAX_ROWS = 200  # of a table in the report
MAX_FEATURES = 20  # of the figure


def write(case: Case, cfs: Counterfactuals, out: Path, run: dict[str, Any]) -> None:
    """Write all outputs to `out`: the result, tables, images, gallery, report and `run`."""
    out.mkdir(parents=True, exist_ok=True)
    cfs.save(out / "counterfactuals")
    table = tabulate(case, cfs)
    _write_csv(out / "results.csv", table)
    details = None
    if case.table is not None:
        details = list_changes(case.table, cfs)
        _write_csv(out / "changes.csv", details)
    else:
        for number, image in enumerate(cfs.counterfactual):
            with files.whole_file(out / "images" / f"{number:05d}.png") as part:
                to_pil_image(image.clamp(0, 1)).save(part, "PNG")
    gallery = draw_gallery(case, cfs)
    pictures = [(caption, render_png(figure, MAX_BYTES)) for caption, figure in gallery]
    for k, (_, png) in enumerate(pictures, 1):
        with files.whole_file(out / f"gallery-{k}.png") as part:
            part.write_bytes(png)
    files.write_json(out / "run.json", run)
    files.write_text(out / "report.html", _render(case, cfs, table, details, pictures, run))


def tabulate(case: Case, cfs: Counterfactuals) -> pd.DataFrame:
    """Return one row per item: decisions, score, failure reason, seconds and passes."""
    frame = cfs.to_frame()
    names = {"source": "decided", "target": "wanted", "n_forward": "passes"}
    chosen = frame[["source", "target", "score", "reached", "reason", "seconds", "n_forward"]]
    chosen = chosen.rename(columns=names).rename_axis("id")
    for column in ("decided", "wanted"):
        chosen[column] = [case.name_class(int(number)) for number in chosen[column]]
    if case.kind == "images":
        chosen["image"] = [f"images/{number:05d}.png" for number in range(len(cfs))]
    return chosen


def list_changes(table: Table, cfs: Counterfactuals) -> pd.DataFrame:
    """Return one row per changed feature of an explained item: id, feature, before, after."""
    before, after = table.to_units(cfs.query), table.to_units(cfs.counterfactual)
    rows = [
        (i, feature, before[feature].iloc[k], after[feature].iloc[k])
        for k, i in enumerate(to_list(cfs.ids))
        for feature in table.features
        if cfs.valid[k] and before[feature].iloc[k] != after[feature].iloc[k]
    ]
    return pd.DataFrame(rows, columns=["id", "feature", "before", "after"])


def draw_gallery(case: Case, cfs: Counterfactuals) -> list[tuple[str, Figure]]:
    """Return figures with their captions: items side by side, or how often a feature changes."""
    with matplotlib.rc_context({"font.size": 10}), matplotlib.rc_context({"backend": "agg"}):
        if case.table is not None:
            figures = [(_CAPTION_TABLE, draw_features(case.table, cfs))]
        else:
            shown = count_shown(len(cfs))
            pages = [range(k, min(k + PER_PAGE, shown)) for k in range(0, shown, PER_PAGE)]
            caption, names = _CAPTION_IMAGES + _list_classes(case), case.class_names
            figures = [(caption, plots.grid(cfs, rows=list(page), names=names)) for page in pages]
    for _, figure in figures:
        plt.close(figure)
    return figures


def _list_classes(case: Case) -> str:
    names = ", ".join(f"{i} {name}" for i, name in enumerate(case.class_names[:20]))
    return f" Classes: {names}." if names else ""


def count_shown(n: int) -> int:
    """Return how many of n images the gallery shows."""
    return min(n, PAGES * PER_PAGE)


_CAPTION_IMAGES = (
    "Top: query, with its decision and the wanted class. Middle: counterfactual; a red frame means "
    "that the wanted probability was not reached. Bottom: change, red added and blue removed."
)
_CAPTION_TABLE = (
    "Share of the explained items whose counterfactual raises (right) or lowers (left) a feature."
)


def draw_features(table: Table, cfs: Counterfactuals) -> Figure:
    """Draw how often each feature rises and falls, the most changed first."""
    change = (cfs.counterfactual - cfs.query)[cfs.valid]
    n = max(len(change), 1)
    share = pd.DataFrame(
        {"rises": ((change > 0).sum(0) / n).tolist(), "falls": ((change < 0).sum(0) / n).tolist()},
        index=list(table.features),
    )
    share = share.loc[share.sum(axis=1).sort_values(ascending=False).index[:MAX_FEATURES]]
    height = 1.2 + 0.28 * len(share)
    figure, ax = plt.subplots(figsize=(7, height), layout="constrained")
    ax.barh(share.index, share["rises"], color="#1e8449", label="rises")
    ax.barh(share.index, -share["falls"], color=plots.FAILED, hatch="//", label="falls")
    ax.axvline(0, color="k", linewidth=0.8)
    ax.set(xlim=(-1, 1), xlabel=f"share of {len(change)} items")
    ax.invert_yaxis()
    ax.legend(loc="lower right")
    return figure


def _write_csv(path: Path, frame: pd.DataFrame) -> None:
    text = frame.to_csv(index=path.name == "results.csv", float_format="%.7g")  # as float32
    files.write_text(path, text)


def _render(
    case: Case,
    cfs: Counterfactuals,
    table: pd.DataFrame,
    details: pd.DataFrame | None,
    pictures: list[tuple[str, bytes]],
    run: dict[str, Any],
) -> str:
    reasons = table["reason"][table["reason"] != ""].value_counts()
    options = {k: v for k, v in run["options"].items() if v not in ("", None, (), [], {})}
    return pages.render(
        TEMPLATE.name,
        data=Path(case.options.images or case.options.csv).name,
        method=cfs.settings["method"],
        n=len(cfs),
        reached=int(cfs.reached.sum()),
        reasons=[(why, int(count)) for why, count in reasons.items()],
        pictures=[(caption, pages.encode_picture(png)) for caption, png in pictures],
        table=pages.make_table(table.reset_index(), MAX_ROWS),
        details=None if details is None else pages.make_table(details, MAX_ROWS),
        max_rows=MAX_ROWS,
        options=options,
    )
