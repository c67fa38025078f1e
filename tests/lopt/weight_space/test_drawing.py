"""What a person looks at: the table, the numbers in it, and the picture."""

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from lopt import InvalidInput, WeightSpace
from lopt.weight_space.table import LONG

MIXED = WeightSpace(
    {
        "a": "h:4, in=3", "b": "h:4*9, k:5+2", "c": "H:2*d[H]:3+H:2*d[H]:3+1, h:4", "d": "2, 3", "scalar": "",
        "e": "o:1",
    },
    {"mean": "h:4", "both<&>": "2, k:5"},
)  # fmt: skip


def stack(depth: int) -> WeightSpace:
    parameters = {"enter": "r:4, in=3"}
    for i in range(depth):
        wide = 6 if i == 2 else 5
        parameters |= {f"layers.{i}.up": f"h{i}:{wide}, r:4", f"layers.{i}.bias": f"h{i}:{wide}"}
        parameters |= {f"layers.{i}.down": f"r:4, h{i}:{wide}"}
    return WeightSpace(parameters | {"leave": "out=2, r:4"})


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_shares_are_what_all_permutations_together_move():
    axes = [axis for _, several in MIXED.items() for axis in several]
    moving = [any(c in str(axis) for c in "hkHd") for axis in axes]
    assert MIXED.permutable_axes == pytest.approx(sum(moving) / len(axes))
    ids = {k: torch.arange(math.prod(s)).reshape(s) for k, s in MIXED.shapes.items()}
    moved = {k: torch.zeros(x.shape, dtype=torch.bool) for k, x in ids.items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        for k, x in MIXED.permute(ids, MIXED.random_permutations(generator)).items():
            moved[k] |= x != ids[k]
    total = sum(x.numel() for x in ids.values())
    assert MIXED.permutable_elements == sum(int(m.sum()) for m in moved.values()) / total
    assert 0.5 < MIXED.permutable_elements < 1


def test_shares_of_nothing():
    for space in (WeightSpace({}), WeightSpace({"w": "3, in=2", "s": ""}), WeightSpace({"w": "h:0, 3"})):
        assert space.permutable_elements == 0.0
    assert WeightSpace({"w": "3, in=2"}).permutable_axes == 0.0


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_of_a_small_space():
    lines = str(MIXED).splitlines()
    assert lines[0].startswith("6 parameters with 324 elements; 5 groups; ")
    row = next(line for line in lines if line.startswith("c "))
    assert re.split(r"\s{2,}", row) == ["c", "13 x 4", "H:2*d[H]:3+H:2*d[H]:3+1, h:4", "H d h", "52"]
    assert re.split(r"\s{2,}", next(line for line in lines if line.startswith("scalar"))) == [
        "scalar",
        "scalar",
        "-",
        "1",
    ]
    assert re.split(r"\s{2,}", next(line for line in lines if line.startswith("d  "))) == [
        "d",
        "2 x 3",
        "2, 3",
        "-",
        "6",
    ]
    groups = lines[next(k for k, line in enumerate(lines) if line.startswith("group")) :]
    rows = [re.split(r"\s{2,}", line) for line in groups[2:]]
    assert rows == [
        ["h", "4", "a", "3", "316", "one"],
        ["k", "5", "b", "1", "252", "one"],
        ["H", "2", "c", "1", "52", "one"],
        ["d", "3", "c", "1", "52", "one for each H"],
        ["o", "1", "e", "1", "1", "one"],
    ]
    assert any(line.startswith("mean ") for line in lines)
    assert repr(MIXED).startswith("WeightSpace({")


def test_columns_are_aligned():
    for block in str(MIXED).split("\n\n")[1:]:
        lines = block.splitlines()
        stops = [match.end() for match in re.finditer("-+", lines[1])]
        for line in lines[2:]:
            assert all(line.ljust(stop + 2)[stop : stop + 2] == "  " for stop in stops[:-1])
            assert len(line) <= stops[-1]


def test_blocks_that_are_alike_are_told_once():
    lines = [re.split(r"\s{2,}", line) for line in str(stack(20)).splitlines()]
    first = [line[0] for line in lines]
    told = [name for name in first if name.startswith("layers")]
    assert told == [f"layers.{i}.{part}" for i in (0, 2, 3) for part in ("up", "bias", "down")]
    assert ["(layers.1)", "as layers.0", "45"] in lines
    assert ["(layers.4 ... layers.19)", "as layers.3", str(16 * 45)] in lines
    assert {"h0", "h2", "h3", "r"} <= set(first) and "h1" not in first and "... 17 more" in first
    sizes = [int(line[-1]) for line in lines[4 : first.index("group") - 1]]
    assert sum(sizes) == sum(map(math.prod, stack(20).shapes.values()))  # nothing is told twice, or not at all
    assert len(stack(5)) <= LONG and "as layers" not in str(stack(5))


def test_blocks_that_share_a_group_with_another_differ():
    parameters = dict(stack(20).items())
    tied = WeightSpace({**{k: ", ".join(map(str, v)) for k, v in parameters.items()}, "layers.7.bias": "h6:5"})
    assert "layers.7.bias" in str(tied) and "layers.7.bias" not in str(stack(20))


# --- the picture -----------------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def picture(space: WeightSpace, path) -> ElementTree.Element:
    space.draw(path)
    return ElementTree.parse(path).getroot()  # which fails unless everything is escaped and closed


def ties(root: ElementTree.Element) -> dict[str, tuple[float, float, float, list[float]]]:
    """For each group its line (x, top, bottom), and the heights of its marks."""
    found = {}
    for group in root.iter(f"{SVG}g"):
        title, line = group.find(f"{SVG}title"), group.find(f"{SVG}line")
        if title is not None and line is not None:
            x, top, bottom = (float(line.attrib[k]) for k in ("x1", "y1", "y2"))
            found[title.text] = (x, top, bottom, [float(c.attrib["cy"]) for c in group.iter(f"{SVG}circle")])
    return found


def test_the_picture_shows_every_tensor_and_ties_every_group(tmp_path):
    root = picture(MIXED, tmp_path / "space.svg")
    texts = {text.text: float(text.attrib["y"]) for text in root.iter(f"{SVG}text")}
    assert {*MIXED, *MIXED.buffers} <= set(texts)
    assert any("324 elements" in (text or "") for text in texts)
    found = ties(root)
    assert set(found) == {"h:4", "k:5", "H:2", "d[H]:3", "o:1"}
    where = {"h:4": ["a", "b", "c", "mean"], "k:5": ["b", "both<&>"], "H:2": ["c"], "d[H]:3": ["c"], "o:1": ["e"]}
    for group, names in where.items():
        *_, top, bottom, heights = found[group]
        assert heights == [texts[name] - 4 for name in names]
        assert (top, bottom) == (heights[0], heights[-1])
    classes = {line.attrib["class"] for line in root.iter(f"{SVG}line")}
    assert "tie dependent" in classes and "prefers-color-scheme: dark" in root.findtext(f"{SVG}style", "")


def test_segments_and_factors_are_seen(tmp_path):
    root = picture(WeightSpace({"w": "h:6+2*k:3, 5"}), tmp_path / "w.svg")
    bar = next(g for g in root.iter(f"{SVG}g") if g.findtext(f"{SVG}title") == "h:6+2*k:3")
    boxes = [
        (r.attrib["class"], *(float(r.attrib[k]) for k in ("x", "y", "width", "height")))
        for r in bar.iter(f"{SVG}rect")
    ]
    (_, x, y, width, height), two, three = [box for box in boxes if box[0] != "edge"]
    assert [box[0] for box in (two, three)] == ["fixed", "group"]
    assert two[1] == three[1] == pytest.approx(x + width, abs=0.2)  # beside the first segment
    assert two[4] == three[4] == height / 2 and three[2] == y + height / 2  # one above the other
    assert width == pytest.approx(two[3], abs=0.2)  # as large


def test_lines_of_two_groups_never_lie_on_each_other(tmp_path):
    root = picture(stack(50), tmp_path / "stack.svg")
    found = list(ties(root).values())
    assert len(found) == 51
    for (x, top, bottom, _), (u, low, high, _) in itertools.combinations(found, 2):
        assert x != u or bottom < low or high < top
    assert len({x for x, *_ in found}) <= 3  # a deep network is not wider
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for item in root.iter():
        assert float(item.attrib.get("x", item.attrib.get("cx", 0))) < width
        assert float(item.attrib.get("y", item.attrib.get("cy", 0))) <= height


def test_a_picture_of_nothing(tmp_path):
    assert len(ties(picture(WeightSpace({}), tmp_path / "empty.SVG"))) == 0
    assert len(ties(picture(WeightSpace({"s": "", "w": "0, 3"}), str(tmp_path / "fixed.svg")))) == 0


def test_another_format(tmp_path):
    with pytest.raises(InvalidInput, match=r"path: '.*space.png'; the picture is an SVG, so the name must end in .svg"):
        MIXED.draw(tmp_path / "space.png")
    assert not list(tmp_path.iterdir())
