"""From run directories to a paper: tables, statistics, figures, a report.

Reads only the files that runs leave behind, by `iqrl.runs.reader`, so it works on a laptop from a copy of `runs/`; it
needs neither torch nor a simulator. ``python -m analysis --help`` lists the commands.

The modules, in the order in which data passes through them:

    runs         run directories and kept runs -> tidy tables, with a cache
    manifests, building, audit, studies
                 tables + sweep manifests -> arms, aligned scores, and everything that is missing
    scales       what a task is judged by, and its normalisation
    statistics   aligned scores -> estimates with intervals
    published    result files of public repositories -> the same tidy rows, never pooled with own runs
    figures/     one module a figure: data and drawing apart
    tables       LaTeX, Markdown and CSV
    report       one HTML file
    exports      TensorBoard and W&B
"""
