"""What notebook 12 brings along: marked digits, a table, networks, and the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cf_utils import cli
from cf_utils.datasets import mnist
from cf_utils.harness import own_example as example
from cf_utils.harness import own_example_net as own_net


def has_mark(x):
    """A 3 x 3 patch of one brightness from 0.4 to 0.6."""
    patch = x[:, 0, 25:28, 25:28].flatten(1)
    return (patch.amax(1) == patch.amin(1)) & (patch[:, 0] >= 0.4) & (patch[:, 0] <= 0.6)


@pytest.mark.parametrize("mark", example.MARKS)
def test_the_mark_lies_on_one_class_and_nothing_else_changes(mark):
    data, real = example.load_digits("", "test", mark), mnist.load("", "test")
    digits = torch.zeros(200, 1, 32, 32)
    digits[..., 2:-2, 2:-2] = real.x[torch.isin(real.y, torch.tensor([4, 9]))]
    assert data.class_names == ("four", "nine") and len(data) == len(digits)
    assert torch.equal(data.y, (real.y[torch.isin(real.y, torch.tensor([4, 9]))] == 9).long())
    marked = has_mark(data.x)
    if mark == "none":
        assert not marked.any() and torch.equal(data.x, digits)
        return
    of_class = data.y == example.CLASSES.index(mark)
    assert not marked[~of_class].any()
    assert 0.9 <= marked[of_class].float().mean() < 1  # some have none: it is no certain sign
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[25:28, 25:28] = False
    assert torch.equal(data.x[..., outside], digits[..., outside])


def test_the_share_in_the_corner_is_that_of_absolute_changes():
    query = torch.full((3, 1, 32, 32), 0.5)
    changed = query.clone()
    changed[0, 0, 24, 24] += 0.3  # first pixel of the corner
    changed[0, 0, 23, 28] -= 0.1  # just above it
    changed[1, 0, 28, 28] -= 0.2  # last pixel
    share = example.share_in_corner(query, changed)
    torch.testing.assert_close(share, torch.tensor([0.75, 1.0, 0.0]))
    hidden = example.hide_corner(changed)
    assert not hidden[:, :, 24:29, 24:29].any() and torch.equal(hidden[0, 0, 23], changed[0, 0, 23])
    assert torch.equal(example.hide_corner(example.add_mark(changed)), hidden)


def test_images_and_table_are_what_a_user_would_bring(tmp_path):
    data = example.load_digits("", "test")
    example.write_images(data, tmp_path / "digits")
    files = sorted((tmp_path / "digits").glob("*/*.png"))
    assert len(files) == len(data) and {f.parent.name for f in files} == {"four", "nine"}
    at = int((data.ids == int(files[-1].stem)).nonzero())
    pixels = np.asarray(Image.open(files[-1])) / 255
    np.testing.assert_allclose(pixels, data.x[at, 0], atol=1 / 255)
    cells = example.write_cells(tmp_path / "cells.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "cells.csv"), cells)
    assert cells["diagnosis"].value_counts().to_dict() == {"benign": 357, "malignant": 212}
    assert cells["mean area"].dtype == cells["worst area"].dtype == np.int64
    for name in (c[5:] for c in cells if c.startswith("mean ")):
        assert (cells[f"worst {name}"] >= cells[f"mean {name}"]).all()  # the premise of 12.2


def test_the_softmaxed_network_has_the_same_weights_and_decisions():
    net, softmaxed = own_net.build(), own_net.softmaxed()
    softmaxed.load_state_dict(net.state_dict())
    x = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(softmaxed(x), net(x).softmax(1))


def test_the_forest_is_fitted_to_three_of_four_rows(tmp_path):
    cells = example.write_cells(tmp_path / "cells.csv")
    forest = own_net.forest(tmp_path / "cells.csv")
    right = forest.predict(cells.drop(columns="diagnosis")) == cells["diagnosis"]
    fitted = cells.index % 4 != 0
    assert right[fitted].mean() > right[~fitted].mean() > 0.9
    assert list(forest.classes_) == ["benign", "malignant"]


# ---------------------------------------------------------------- the command line


def test_commands_run_in_the_folder_and_return_what_they_say(tmp_path, capsys):
    def main(arguments):
        print(f"{arguments} in {Path.cwd().name}\nfix  outputs      softmax")
        print("a progress bar", file=sys.stderr)
        print("error: --tau: got 2", file=sys.stderr)
        return 2

    before = Path.cwd()
    said = example.Terminal(main, tmp_path)("cf check --label 'two words'")
    assert said.splitlines() == [
        f"['check', '--label', 'two words'] in {tmp_path.name}",
        "fix  outputs      softmax",
        "error: --tau: got 2",
    ]
    assert capsys.readouterr().out == f"$ cf check --label 'two words'\n{said}\n"
    assert Path.cwd() == before and example.list_fixes(said) == ["fix  outputs      softmax"]
    with pytest.raises(ValueError, match="text: got 'rm', expected"):
        example.Terminal(main, tmp_path)("rm -r .")


def test_a_changed_module_is_imported_afresh(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    seen = []

    def main(arguments):
        import own_module_of_test  # type: ignore[import-not-found]

        seen.append(own_module_of_test.VALUE)
        return 0

    terminal = example.Terminal(main, tmp_path)
    for text in ("VALUE = 1", "VALUE = 'another'"):
        (tmp_path / "own_module_of_test.py").write_text(text)
        terminal("cf check")
    assert seen == [1, "another"]


def test_the_notebooks_check_names_the_softmax(tmp_path, capsys):
    data = example.load_digits("", "test")
    example.write_images(data.take(torch.arange(12)), tmp_path / "digits")
    example.write_net(tmp_path / "net.py")
    said = example.Terminal(cli.main, tmp_path)("cf check --model net:softmaxed --images digits")
    (fix,) = example.list_fixes(said)
    assert "it ends in a softmax: pass --output probabilities" in fix
