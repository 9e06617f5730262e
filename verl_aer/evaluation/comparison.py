"""Compare evaluations or validation dumps, after checking that they are comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_aer._files import read_json
from verl_aer._tables import Table
from verl_aer.errors import InputError
from verl_aer.evaluation.report import comparison_table, plot_pass_at_k, summary_table
from verl_aer.evaluation.samples import read_run
from verl_aer.evaluation.validation_dumps import read_dump


def compare(runs: Mapping[str, Sequence[Path]], ks: Sequence[int] = (), figure: Path | None = None) -> Table:
    """Make the table of one run, or of several with their differences from the first.

    Args:
        runs: label -> one folder of `verl-aer evaluate`, or one of veRL's validation dumps, per training seed.
        ks: values of k for pass@k; empty: 1, the number of answers that all runs have, and one between.
        figure: file for a figure of pass@k.

    Raises:
        InputError: different settings or problems, or too few answers.
        DumpError: a dump cannot be read.
    """
    places = {label if len(seeds) == 1 else str(path): path for label, seeds in runs.items() for path in seeds}
    if len({path.is_dir() for path in places.values()}) > 1:
        raise InputError("compare folders with folders, or dumps with dumps: their problem names differ")
    folders = {label: path for label, path in places.items() if path.is_dir()}
    answers = {
        label: [read_run(path) if path.is_dir() else read_dump(path) for path in seeds] for label, seeds in runs.items()
    }
    require_same_settings(folders)
    table = comparison_table(answers, ks) if len(answers) > 1 else summary_table(*answers.values(), ks)
    if figure is not None:
        plot_pass_at_k(answers, "pass@k", figure)
    return table


def require_same_settings(folders: Mapping[str, Path]) -> None:
    """Check that evaluations differ only in model, n and seed. pass@k is unbiased for any n.

    Args:
        folders: label -> folder of the evaluation.

    Raises:
        InputError: names the differences in data, reward, temperature, top-p or maximum length.
    """
    settings = {label: _compared_settings(folder) for label, folder in folders.items()}
    base = next(iter(settings), None)
    told = [
        f"{key}: {settings[base][key]!r} in {base}, {value!r} in {label}"
        for label, of_run in settings.items()
        for key, value in of_run.items()
        if value != settings[base][key]
    ]
    if told:
        raise InputError(f"evaluations with different settings cannot be compared ({'; '.join(told)})")


def _compared_settings(folder: Path) -> dict[str, Any]:
    settings = read_json(folder / "settings.json")
    sampling = settings["sampling"]
    return {
        "SHA-256 of --data": settings["data_sha256"][:12],
        "--reward": settings["reward"],
        "--temperature": sampling["temperature"],
        "--top-p": sampling["top_p"],
        "--max-tokens": sampling["max_tokens"],
    }
