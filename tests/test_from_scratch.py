"""docs/from_scratch.ipynb: its code runs, and gives the outputs that are stored in it."""

import base64
import contextlib
import io
import json
import re
import sys
from typing import Any

import pytest

from benchmarks import ROOT
from benchmarks.workloads import UnknownWorkload, tokenizer

pytest.importorskip("matplotlib", reason="the notebook's picture needs the package matplotlib")
from matplotlib import pyplot

FILE = ROOT / "docs" / "from_scratch.ipynb"
CELLS = json.loads(FILE.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
MARKDOWN = "\n".join("".join(c["source"]) for c in CELLS if c["cell_type"] == "markdown")


def stored_text(cell: dict[str, Any]) -> str:
    streams = [output for output in cell["outputs"] if output["output_type"] == "stream"]
    return "".join(line for stream in streams for line in stream["text"])


def stored_pictures(cell: dict[str, Any]) -> list[bytes]:
    data = [o["data"] for o in cell["outputs"] if o["output_type"] == "display_data"]
    return [base64.b64decode(found["image/png"]) for found in data]


def test_each_cell_gives_its_stored_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells in one namespace, in the notebook's folder, as Jupyter runs them."""
    try:
        tokenizer()
    except UnknownWorkload as error:
        pytest.skip(str(error))
    pyplot.switch_backend("Agg")
    monkeypatch.chdir(FILE.parent)
    monkeypatch.setattr(sys, "path", sys.path.copy())  # the notebook adds to it
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in CODE:
        source = compile("".join(cell["source"]), f"<cell {cell['id']}>", "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(source, namespace)
        drawn = len(pyplot.get_fignums())
        pyplot.close("all")
        assert printed.getvalue() == stored_text(cell), cell["id"]
        assert drawn == len(stored_pictures(cell)), cell["id"]


def test_all_cells_were_executed_in_order_without_errors() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    kinds = {output["output_type"] for cell in CODE for output in cell["outputs"]}
    assert kinds == {"stream", "display_data"}


def test_stores_one_picture() -> None:
    [picture] = [picture for cell in CODE for picture in stored_pictures(cell)]
    image = pyplot.imread(io.BytesIO(picture), format="png")  # (height, width, channels)
    assert image.shape[0] > 100
    assert len({tuple(pixel) for row in image[::4, ::4] for pixel in row}) > 2  # not blank
    assert FILE.stat().st_size < 100_000  # small enough for a git repository


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)]+)\)", MARKDOWN)
    assert "../impls/logits/eager.py" in links
    assert [link for link in links if not (FILE.parent / link).exists()] == []
