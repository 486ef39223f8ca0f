"""Draw every figure of every study, to PDF and PNG files and, for the report, as SVG."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

from analysis.errors import InputError
from analysis.figures import FIGURES
from analysis.figures.drawing import CAPTION, Context, Drawing, Skip

PARALLEL_FROM = 8  # figures from which a second process pays for its start


@dataclass
class Rendered:
    """One figure as files, and what the report needs of it."""

    study: str
    name: str
    title: str
    caption: str = ""
    svg: str = ""
    hover: list[dict[str, Any]] = field(default_factory=list)
    skipped: str = ""  # why there is no figure
    files: list[str] = field(default_factory=list)


def render(
    contexts: list[Context],
    out: Path | None,
    svg: bool = False,
    only: tuple[str, ...] = FIGURES,
    processes: int | None = None,
) -> list[Rendered]:
    """Draw the figures of several studies; files go to `out/<study>/<figure>.pdf|png`, and
    the numbers that they draw to `out/<study>/data/<figure>.csv`, unless `out` is None."""
    jobs = [(i, name) for i in range(len(contexts)) for name in only]
    if out is not None:
        for context in contexts:
            make_folder(out / context.study.name / "data")
    processes = min(os.cpu_count() or 1, 4) if processes is None else processes
    if processes > 1 and len(jobs) >= PARALLEL_FROM and hasattr(os, "fork"):
        _JOBS[:] = [(contexts, out, svg)]  # inherited by the forked workers: the tables are not copied
        slowest_first = sorted(jobs, key=lambda job: job[1] not in ("tasks", "iqm_return", "gpu_hours", "latent_rank"))
        import multiprocessing

        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork")) as pool:
            done = dict(zip(slowest_first, pool.map(_render_inherited, slowest_first), strict=True))
        return [done[job] for job in jobs]
    return [_render_one(contexts[i], name, out, svg) for i, name in jobs]


_JOBS: list[tuple[list[Context], Path | None, bool]] = []


def _render_inherited(job: tuple[int, str]) -> Rendered:
    contexts, out, svg = _JOBS[0]
    return _render_one(contexts[job[0]], job[1], out, svg)


def make_folder(path: Path) -> None:
    """A folder for what is written, with its parents. Raises InputError where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={path}: cannot make this folder ({error.strerror})") from None


def _render_one(context: Context, name: str, out: Path | None, svg: bool) -> Rendered:
    module = importlib.import_module(f"analysis.figures.{name}")
    rendered = Rendered(context.study.name, name, module.TITLE)
    with matplotlib.rc_context(context.style.rc):
        try:
            drawing: Drawing = module.draw(context)
        except Skip as reason:
            rendered.skipped = str(reason)
            return rendered
        rendered.caption = drawing.caption.text
        for ax, _ in drawing.hover:
            ax.set_ylim(*context.study.display.ylim.get(name, (None, None)))
        lay_out(drawing)
        if out is not None:
            for suffix, metadata in ((".pdf", {"CreationDate": None}), (".png", {})):
                path = out / context.study.name / f"{name}{suffix}"
                drawing.figure.savefig(path, metadata=metadata)
                rendered.files.append(str(path))
            drawing.data.to_csv(out / context.study.name / "data" / f"{name}.csv", index=False)
        if svg:
            rendered.svg, rendered.hover = _svg(drawing, prefix=f"{context.study.name}-{name}")
    return rendered


def lay_out(drawing: Drawing) -> None:
    """Settle where everything is, once for all formats: at the resolution of the PNG, as letters widen with it."""
    drawing.figure.draw_without_rendering()
    drawing.figure.set_layout_engine(None)


def _svg(drawing: Drawing, prefix: str) -> tuple[str, list[dict[str, Any]]]:
    """The figure as an <svg> element whose ids are its own, and the axes that answer to the pointer.

    The caption is cut off at the foot: the report prints it as text.
    """
    figure = drawing.figure
    for artist in figure.texts:
        artist.set_visible(artist.get_gid() != CAPTION)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    width, height = figure.get_size_inches()
    size = f'viewBox="0 0 {72 * width:g} {72 * (height - drawing.caption.foot):g}"'
    text = re.sub(r'(?:width|height)="[\d.]+pt" ?', "", text, count=2)
    text = re.sub(r'viewBox="[^"]*"', size, text, count=1)
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", prefix)
    text = re.sub(r'\bid="', f'id="{safe}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{safe}-", text)
    hover = []
    for ax, series in drawing.hover:
        if not series:
            continue
        box = ax.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
        hover.append({
            "box": [round(72 * v, 2) for v in (box.x0, height - box.y1, box.width, box.height)],
            "xlim": [float(v) for v in ax.get_xlim()],
            "title": ax.get_title(),
            "xlabel": ax.get_xlabel(),
            "series": series,
        })  # fmt: skip
    return text, hover


def as_json(value: Any) -> str:
    """JSON that may stand inside a <script> element."""
    return json.dumps(value, separators=(",", ":")).replace("</", "<\\/")
