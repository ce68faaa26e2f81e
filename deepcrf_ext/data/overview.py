"""What a data set holds, split by split: counts, sizes, classes, what is ignored, bad files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from deepcrf_ext.config.data import DataSource
from deepcrf_ext.data.base import (
    FileDataset,
    FileReport,
    LabelledFile,
    SegmentationDataset,
    count_labels,
    turned_notice,
)
from deepcrf_ext.data.file_checks import problems_of, report_files
from deepcrf_ext.data.file_patterns import find_splits
from deepcrf_ext.data.folder import FolderDataset
from deepcrf_ext.data.images import is_lossy
from deepcrf_ext.data.label_maps import LOSSY, Labels, describe_code
from deepcrf_ext.data.masks import read_codes
from deepcrf_ext.data.pairing import pair_files
from deepcrf_ext.data.registry import DATASETS, open_dataset
from deepcrf_ext.errors import InputError
from deepcrf_ext.settings_files import home_expanded

MAX_VALUES = 64  # a folder without a label map: more values in its masks are no coding

Progress = Callable[[int], object]
Source = TypeVar("Source", bound=DataSource)


@dataclass(frozen=True)
class Overview:
    """One split of a data set.

    dataset: what can be used of it.
    good: indices of the samples that can be read.
    problems: what cannot be used, each naming the file.
    left_out: files that are no images.
    turned: images that EXIF turns, with masks whose size fits either way.
    sizes: how many images have each (width, height).
    pixels: of every class, then ignored: int64 [K + 1]. images: how many they occur in.
    """

    split: str
    dataset: SegmentationDataset
    good: tuple[int, ...]
    problems: tuple[str, ...]
    left_out: tuple[Path, ...]
    turned: tuple[Path, ...]
    sizes: Counter[tuple[int, int]]
    pixels: np.ndarray
    images: np.ndarray


def list_splits(source: DataSource) -> list[str]:
    """The splits that are there; of a folder those that its patterns find. Empty if none is."""
    if source.dataset != "folder":
        return list(DATASETS.get(source.dataset, ()))
    root = home_expanded(source.root or Path())
    if source.split_file is not None:
        return find_splits(root, source.split_file) or ["all"]
    for text in (source.images or "images/{split}/**", source.masks or "masks/{split}/**"):
        if "{split}" in text:
            return find_splits(root, text)
    return ["all"]


def survey(source: DataSource, split: str, progress: Progress | None = None) -> Overview:
    """Reads every file of a split. Raises InputError when it cannot be opened at all."""
    left_out: Sequence[Path] = ()
    dataset: SegmentationDataset
    if source.dataset == "folder" and source.root is not None:
        dataset = FolderDataset(home_expanded(source.root), split, source, strict=False)
        left_out = dataset.pairing.left_out
    else:
        dataset = open_dataset(source, split=split, strict=False)
    if isinstance(dataset, FileDataset):
        reports = report_files(dataset, progress)
        problems = problems_of(dataset, reports)
    else:
        reports = _read_items(dataset, progress)
        problems = [report.problem for report in reports if report.problem is not None]
    sizes: Counter[tuple[int, int]] = Counter()
    pixels, images = np.zeros((2, dataset.num_classes + 1), np.int64)
    good = []
    for index, report in enumerate(reports):
        if report.size is None:
            continue
        height, width = report.size
        good.append(index)
        sizes[width, height] += 1
        for label, count in report.counts.items():
            place = label if label < dataset.num_classes else dataset.num_classes
            pixels[place] += count
            images[place] += 1
    turned = tuple(report.file.image for report in reports if report.turned)
    return Overview(
        split, dataset, tuple(good), tuple(problems), tuple(left_out), turned, sizes, pixels, images
    )


def _read_items(dataset: SegmentationDataset, progress: Progress | None) -> list[FileReport]:
    """What reading the samples of a data set that is no files gives."""
    reports = []
    for index in range(len(dataset)):
        file = LabelledFile(str(index), Path(str(index)), None)
        try:
            labels = dataset[index].labels
        except InputError as error:
            reports.append(FileReport(file, str(error)))
        else:
            reports.append(FileReport(file, None, labels.shape, count_labels(labels)))
        if progress is not None:
            progress(1)
    return reports


def values_as_classes(source: Source, splits: Sequence[str]) -> Source:
    """Of a folder whose classes are not told: each value or colour in its masks as a class.

    Splits that cannot be opened are passed over, unless that is all of them. Raises InputError
    then, and where there are more values than can be a coding.
    """
    assert source.root is not None
    root = home_expanded(source.root)
    files: list[LabelledFile] = []
    reasons: list[InputError] = []
    for split in splits:
        try:
            files += pair_files(root, split, source).files
        except InputError as error:
            reasons.append(error)
    if len(reasons) == len(splits):
        raise reasons[0]
    paths = [file.labels for file in files if file.labels is not None]
    codes: set[int] = set()
    with ThreadPoolExecutor() as threads:
        for found in threads.map(lambda path: _codes(path, source), paths):
            codes |= found
    lossy = len(codes) > 2 and any(map(_is_lossy, paths))
    if lossy or len(codes) > MAX_VALUES:
        some = ", ".join(describe_code(code) for code in sorted(codes)[:12])
        reason = "give --data.classes FILE where they are indices, else --data.labels FILE"
        if lossy:
            reason = LOSSY
        raise InputError(
            f"{root}: masks hold {len(codes)} values or colours ({some}, ...): {reason}"
        )
    labels: Labels = {describe_code(c).strip("'"): describe_code(c) for c in sorted(codes)}
    return replace(source, labels=labels)


def _codes(path: Path, source: DataSource) -> set[int]:
    try:
        return set(np.unique(read_codes(path, source.palette_masks)).tolist())
    except InputError:
        return set()  # named by the survey


def _is_lossy(path: Path) -> bool:
    try:
        return is_lossy(path)
    except InputError:
        return False  # named by the survey


def describe(overview: Overview) -> str:
    """An overview as text of several lines."""
    dataset, count = overview.dataset, len(overview.good)
    labelled = not count or overview.pixels[: dataset.num_classes].any()
    plural = "s" * (count != 1)
    kind = f"image{plural} with mask{plural}" if labelled else f"image{plural} without a label"
    lines = [f"{overview.split}: {count} {kind}, {_describe_sizes(overview.sizes)}"]
    total = max(int(overview.pixels.sum()), 1)
    names = [*dataset.classes, "(ignored)"]
    width = max(len("class"), *(len(name) for name in names))
    lines.append(f"  {'label':>5}  {'class':<{width}}  {'pixels':>8}  {'images':>7}")
    for index, name in enumerate(names):
        if not labelled and index < dataset.num_classes:
            continue
        label = index if index < dataset.num_classes else dataset.ignore_index
        share = f"{overview.pixels[index] / total:.2%}" if overview.pixels[index] else "never"
        lines.append(f"  {label:>5}  {name:<{width}}  {share:>8}  {overview.images[index]:>7}")
    if overview.left_out:
        kinds = Counter(path.suffix or path.name for path in overview.left_out)
        named = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        lines.append(f"  left out, no images: {named}")
    if overview.turned:
        lines.append(f"  {turned_notice(overview.turned)}")
    lines += [f"  problem: {problem}" for problem in overview.problems]
    return "\n".join(lines)


def _describe_sizes(sizes: Counter[tuple[int, int]]) -> str:
    if not sizes:
        return "none of them usable"
    if len(sizes) == 1:
        ((width, height),) = sizes
        return f"all of {width}x{height} pixels"
    widths, heights = zip(*sizes, strict=True)
    (common_width, common_height), _ = sizes.most_common(1)[0]
    return (
        f"{_range(widths)} wide and {_range(heights)} high in {len(sizes)} sizes, most often "
        f"{common_width}x{common_height}"
    )


def _range(sides: tuple[int, ...]) -> str:
    low, high = min(sides), max(sides)
    return f"{low}" if low == high else f"{low}..{high}"
