"""A table as LaTeX (booktabs), Markdown and CSV."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd


@dataclass
class Table:
    """Cells as text with the ones to print bold, and the same as numbers, tidy, for the CSV file."""

    name: str
    caption: str
    columns: list[str]
    rows: list[list[str]]
    numbers: pd.DataFrame
    bold: set[tuple[int, int]] = field(default_factory=set)
    rules: tuple[int, ...] = ()  # rows above which a line is drawn
    study: str = ""
    named: str = ""  # the part of the caption that names what is incomplete, by run directory
    counted: str = ""  # what a paper's caption says in its place


def markdown(table: Table) -> str:
    bold = [[f"**{text}**" if (i, j) in table.bold else text for j, text in enumerate(row)]
            for i, row in enumerate(table.rows)]  # fmt: skip
    cells = [[text.replace("|", r"\|") for text in row] for row in [table.columns, *bold]]
    widths = [max(len(row[j]) for row in cells) for j in range(len(table.columns))]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
             for row in cells]  # fmt: skip
    lines.insert(
        1,
        "|"
        + "|".join("-" * (width + 2) if j == 0 else "-" * (width + 1) + ":" for j, width in enumerate(widths))
        + "|",
    )
    return "\n".join([*lines, "", table.caption, ""])


def latex(table: Table) -> str:
    """A table environment that needs the packages booktabs and graphicx.

    It is shrunk where it would be wider than the text or nearly as high, and takes both columns of a page from four
    arms on. What is incomplete is counted in its caption and named in a comment.
    """
    environment = "table*" if len(table.columns) > 4 else "table"
    caption = table.caption.replace(table.named, table.counted) if table.named else table.caption
    lines = [
        r"% needs \usepackage{booktabs,graphicx}", *([f"% {table.named}"] if table.named else []),
        rf"\begin{{{environment}}}[t]", r"\centering",
        rf"\caption{{{_tex(caption)}}}",
        rf"\label{{tab:{'-'.join(filter(None, [table.study, table.name]))}}}",
        r"\resizebox*{!}{\ifdim\totalheight>.85\textheight.85\textheight\else\totalheight\fi}{%",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule",
        " & ".join(map(_tex, table.columns)) + r" \\", r"\midrule",
    ]  # fmt: skip
    for i, row in enumerate(table.rows):
        if i in table.rules and i:
            lines.append(r"\midrule")
        cells = [rf"\textbf{{{_tex(text)}}}" if (i, j) in table.bold else _tex(text) for j, text in enumerate(row)]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}}", rf"\end{{{environment}}}", ""])


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "|": r"\textbar{}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"$<$", ">": r"$>$",
    "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$", "→": r"$\to$", "∞": r"$\infty$",
}  # fmt: skip
_GREEK = (
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi",
    "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi",
    "Pi", "Sigma", "Phi", "Psi", "Omega",
)  # fmt: skip
_TEX |= {letter: rf"$\{name}$" for letter, name in zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", _GREEK, strict=True)}


def _tex(text: str) -> str:
    escaped = "".join(_TEX.get(letter, letter) for letter in text)
    return re.sub(r"(?<![\w.])([+-])(?=\d)", r"$\1$", escaped)


def write(made: list[Table], folder: Path) -> None:
    """`<folder>/<table>.tex|md|csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in made:
        (folder / f"{table.name}.md").write_text(markdown(table))
        (folder / f"{table.name}.tex").write_text(latex(table))
        table.numbers.to_csv(folder / f"{table.name}.csv", index=False)
