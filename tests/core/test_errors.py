"""What errors of the system become in the package's own."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from deepcrf_ext.data.arrays import read_array
from deepcrf_ext.data.images import read_image, read_labels
from deepcrf_ext.data.tiff_bands import as_rgb
from deepcrf_ext.data.voc import read_sbd_labels
from deepcrf_ext.errors import InputError, reason
from deepcrf_ext.settings_files import read_text


@pytest.mark.parametrize("read", [read_array, read_text, as_rgb, read_sbd_labels])
def test_files_that_cannot_be_read_are_named_once_and_without_a_number(tmp_path, read):
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    told = str(caught.value)
    assert told.startswith(f"{tmp_path}: cannot be read as ")
    assert told.endswith("(Is a directory)")


@pytest.mark.parametrize("read", [read_image, read_labels])
def test_pictures_that_cannot_be_read(tmp_path, monkeypatch, read):
    path = tmp_path / "a.png"
    Image.new("L", (2, 2)).save(path)

    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: cannot be read as an image (Permission denied)"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "a.pt"), "No space left on device"),
        (OSError("of a library"), "of a library"),
        (ValueError("bad magic"), "bad magic"),
    ],
)
def test_reasons(error: Exception, words: str) -> None:
    assert reason(error) == words
