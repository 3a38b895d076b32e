"""File trees as they are found in the field, and worse: drawn for trials that look for faults."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

LONGEST_NAME = 255
SIZES = ((32, 32), (1, 1), (15, 40), (16, 16), (20, 33), (48, 17), (64, 64))
OUTSIDE = "outside"
"""Name of a folder beside the tree, with two images, that links may lead to."""


@dataclass(frozen=True)
class Entry:
    """A file, a symbolic link or an empty folder.

    Args:
        path: relative to the tree, as bytes: names need not be UTF-8.
        what: in words.
        content: of a file.
        link: target of a symbolic link.
    """

    path: bytes
    what: str
    content: bytes | None = field(default=None, repr=False)
    link: bytes | None = None


@dataclass(frozen=True)
class Tree:
    """Entries that do not get in each other's way."""

    entries: tuple[Entry, ...]

    def write(self, root: Path) -> None:
        """Create the tree, and the folder beside it."""
        outside = root.parent / OUTSIDE
        outside.mkdir()
        for number in range(2):
            (outside / f"outside{number}.png").write_bytes(picture("png RGB", (32, 32), number))
        root.mkdir()
        for entry in self.entries:
            path = root / os.fsdecode(entry.path)
            (path if _is_folder(entry) else path.parent).mkdir(parents=True, exist_ok=True)
            if entry.content is not None:
                path.write_bytes(entry.content)
            elif entry.link is not None:
                path.symlink_to(os.fsdecode(entry.link))


def _is_folder(entry: Entry) -> bool:
    return entry.content is None and entry.link is None


def _without_conflicts(entries: Iterator[Entry] | list[Entry]) -> tuple[Entry, ...]:
    """Drop what would need two things in one place; the first of them stays."""
    kept: list[Entry] = []
    taken: set[bytes] = set()
    folders: set[bytes] = set()
    for entry in entries:
        parts = entry.path.split(b"/")
        parents = {b"/".join(parts[:count]) for count in range(1, len(parts))}
        if entry.path in taken or entry.path in folders or parents & taken:
            continue
        folders |= parents
        (folders if _is_folder(entry) else taken).add(entry.path)
        kept.append(entry)
    return tuple(kept)


# Pictures: a light rectangle on a dark ground, so that a foreground can be found.


def _grey(size: tuple[int, int], seed: int, most: int = 255) -> np.ndarray:
    width, height = size
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.05, 0.15, (height, width))
    values[height // 5 : -height // 5 or None, width // 5 : -width // 5 or None] += 0.6
    return values * most


def _base(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    grey = Image.fromarray(_grey(size, seed).astype(np.uint8))
    if mode == "black":
        return Image.new("L", size)
    if mode == "12 bit":
        return Image.fromarray((800 + _grey(size, seed, 2000)).astype(np.uint16))
    if mode == "I;16":
        return Image.fromarray(_grey(size, seed, 65535).astype(np.uint16))
    if mode == "I":
        return Image.fromarray(_grey(size, seed, 65535).astype(np.int32))
    if mode == "F":
        return Image.fromarray(_grey(size, seed, 1).astype(np.float32))
    if mode == "F nan":
        return Image.fromarray(np.full(size[::-1], np.nan, np.float32))
    if mode == "I negative":
        return Image.fromarray(np.full(size[::-1], -5, np.int32))
    if mode in ("RGBA", "LA"):
        transparent = grey.convert(mode)
        transparent.putalpha(Image.fromarray((_grey(size, seed) > 40).astype(np.uint8) * 255))
        return transparent
    return grey.convert(mode)


Encoder = Callable[[tuple[int, int], int], bytes]


def _plain(format: str, mode: str, **options: object) -> Encoder:
    def encode(size: tuple[int, int], seed: int) -> bytes:
        file = io.BytesIO()
        image = _base(mode, size, seed)
        if mode == "P":
            image.save(file, format, transparency=0, **options)
        else:
            image.save(file, format, **options)
        return file.getvalue()

    return encode


def _frames(format: str, modes: tuple[str, ...], **options: object) -> Encoder:
    def encode(size: tuple[int, int], seed: int) -> bytes:
        file = io.BytesIO()
        first, *others = (_base(mode, size, seed + n) for n, mode in enumerate(modes))
        first.save(file, format, save_all=True, append_images=others, **options)
        return file.getvalue()

    return encode


PICTURES: dict[str, tuple[str, Encoder]] = {
    "png RGB": (".png", _plain("PNG", "RGB")),
    **{f"png {m}": (".png", _plain("PNG", m)) for m in ("1", "L", "LA", "P", "RGBA", "I;16")},
    "png black": (".png", _plain("PNG", "black")),
    **{f"jpg {m}": (".jpg", _plain("JPEG", m)) for m in ("L", "RGB", "CMYK")},
    **{f"bmp {m}": (".bmp", _plain("BMP", m)) for m in ("1", "L", "P", "RGB")},
    **{
        f"tiff {m}": (".tif", _plain("TIFF", m))
        for m in ("1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16", "12 bit", "I", "F")
    },
    "tiff lzw": (".tiff", _plain("TIFF", "RGB", compression="tiff_lzw")),
    "tiff F nan": (".tiff", _plain("TIFF", "F nan")),
    "tiff I negative": (".tiff", _plain("TIFF", "I negative")),
    "tiff of 3 pages": (".tif", _frames("TIFF", ("L", "L", "RGB"))),
    "tiff of 2 pages, deep": (".tiff", _frames("TIFF", ("I;16", "I;16"))),
    "animated png": (".png", _frames("PNG", ("RGB", "RGB"))),
    "mpo": (".jpg", _frames("MPO", ("RGB", "RGB"))),
    "gif": (".gif", _plain("GIF", "P")),
    "animated gif": (".gif", _frames("GIF", ("L", "L", "L"))),
    "webp": (".webp", _plain("WEBP", "RGB")),
    "webp RGBA": (".webp", _plain("WEBP", "RGBA", lossless=True)),
    "animated webp": (".webp", _frames("WEBP", ("RGB", "RGB"))),
    "jp2 RGB": (".jp2", _plain("JPEG2000", "RGB")),
    "jp2 L": (".jp2", _plain("JPEG2000", "L")),
    "ppm": (".ppm", _plain("PPM", "RGB")),
    "pgm": (".pgm", _plain("PPM", "L")),
    "pgm I;16": (".pgm", _plain("PPM", "I;16")),
    "pbm": (".pbm", _plain("PPM", "1")),
}


@cache
def picture(name: str, size: tuple[int, int] = (32, 32), seed: int = 0) -> bytes:
    """The bytes of an image file, one of ``PICTURES``."""
    return PICTURES[name][1](size, seed)


@cache
def mask(size: tuple[int, int], kind: str) -> bytes:
    """The bytes of a mask: ``partly``, ``empty``, ``full`` or ``alpha``, a shape in alpha alone."""
    width, height = size
    marked = np.zeros((height, width), np.uint8)
    marked[: height // 2 + 1, : width // 2 + 1] = 255
    values = {"empty": marked * 0, "full": marked | 255}.get(kind, marked)
    image = Image.fromarray(values)
    if kind == "alpha":
        image = Image.new("RGBA", size, "white")
        image.putalpha(Image.fromarray(marked))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


_AWKWARD = (
    "a ü 漢字 e\u0301 naïve\u00a0part … 😀 =1+1 +x -r --out @SUM(A1) %s{0}%d #5 q\"uote 'single' "
    "<b>&amp; a,b ~ $HOME * [1] a\\b a.b.c ..a .hidden con a_mask good NaN 1 \x01 \x1b[31mred "
    "\u202egnp"
)
_BROKEN = [b"a\nb", b"a\rb", b"a\tb", b"a b", b" lead", b"trail ", "\u2028".encode()]
_NOT_UTF8 = [b"\xff\xfe", b"caf\xe9"]
_NAMES = st.one_of(
    st.sampled_from([name.encode() for name in _AWKWARD.split(" ")] + _BROKEN + _NOT_UTF8),
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=9
    ).map(str.encode),
    st.binary(min_size=1, max_size=9).map(lambda name: name.translate(None, b"/\0") or b"b"),
    st.sampled_from([b"x" * 260, "é".encode() * 140, "漢".encode() * 90]),
)


def _named(name: bytes, number: int, suffix: str) -> bytes:
    """A name that no other entry has, as long as a file system takes."""
    end = f"{number}{suffix}".encode()
    return name[: LONGEST_NAME - len(end)] + end


_DAMAGE = st.sampled_from(
    ["none"] * 14 + ["cut short", "empty", "text", "a byte changed", "tail", "other suffix"]
)


@st.composite
def _image(
    draw: st.DrawFn, number: int, folder: bytes, size: tuple[int, int], plain_names: bool = False
) -> Entry:
    """An image file of any format, depth, size and name, sometimes damaged."""
    what = draw(st.sampled_from(list(PICTURES)))
    damage = draw(_DAMAGE)
    suffix = PICTURES[what][0]
    content = picture(what, size, number)
    if damage == "cut short":
        content = content[: draw(st.integers(1, len(content) - 1))]
    elif damage == "empty":
        content = b""
    elif damage == "text":
        content = b"this is not an image\n"
    elif damage == "a byte changed":
        place = draw(st.integers(0, len(content) - 1))
        content = content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :]
    elif damage == "tail":
        content += bytes(64)
    elif damage == "other suffix":
        suffix = draw(st.sampled_from([".PNG", ".jpeg", ".Tif", ".bmp", ".dat", "", ".png.txt"]))
    name = f"{number:03}".encode() if plain_names else draw(_NAMES)
    told = f"{what} {size[0]}x{size[1]}" + ("" if damage == "none" else f", {damage}")
    return Entry(folder + _named(name, number, suffix), told, content)


FOREIGN = (
    ("readme.txt", b"notes\n"),
    ("Thumbs.db", b"\xd0\xcf\x11\xe0"),
    (".DS_Store", b"\0\0\0\1Bud1"),
    ("labels.csv", b"a,b\n"),
    ("data.zip", b"PK\3\4"),
    ("clip.mp4", b"\0\0\0\x18ftyp"),
    ("page.svg", b"<svg/>"),
    ("._copy.png", b"\0\5\x16\7"),
    # Names that the tool itself gives to files.
    ("scores.csv", b"mine\n"),
    ("scores.json", b"[1]\n"),
    ("config.yaml", b"mine: 1\n"),
    ("manifest.json", b"{}\n"),
    ("overlays/mine.txt", b"mine\n"),
    ("training/notes.txt", b"mine\n"),
    ("anomalies.png", picture("png RGB", (32, 32), 99)),
    ("overlays/mine.png", picture("png RGB", (32, 32), 98)),
)


@st.composite
def _odd(draw: st.DrawFn, number: int, folders: list[bytes]) -> Entry:
    """Anything that may lie in a folder."""
    kind = draw(st.sampled_from(["image"] * 5 + ["foreign", "folder", "link", "link"]))
    folder = draw(st.sampled_from(folders))
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 1, 2, 7]))):
        folder += _named(draw(_NAMES), number, "") + b"/"
    if kind == "image":
        return draw(_image(number, folder, draw(st.sampled_from(SIZES))))
    if kind == "foreign":
        name, content = draw(st.sampled_from(FOREIGN))
        return Entry(folder + name.encode(), "foreign file", content)
    if kind == "folder":
        return Entry(folder + _named(draw(_NAMES), number, ""), "empty folder")
    up = b"../" * folder.count(b"/")
    target = draw(
        st.sampled_from(
            [b".", b"..", b"nowhere.png", up + b"../" + OUTSIDE.encode(), up or b"."]
            + [up + b"../" + OUTSIDE.encode() + b"/outside0.png"]
            + [up + each for each in folders if each]
        )
    )
    suffix = draw(st.sampled_from(["", ".png", ".txt"]))
    if target.endswith(b".png"):
        suffix = ".png"
    return Entry(folder + _named(draw(_NAMES), number, suffix), "link", link=target)


def _normals(folder: bytes, count: int, content: str) -> list[Entry]:
    """Normal images: all different, copies of one, or black."""
    entries = []
    for number in range(count):
        if content == "black":
            made = picture("png black")
        else:
            made = picture("png RGB", (32, 32), 0 if content == "copies" else number)
        entries.append(Entry(folder + b"%03d.png" % number, f"normal, {content}", made))
    return entries


_MASKS = st.sampled_from(
    ["partly"] * 4
    + ["bare name", "none", "several", "folder", "empty", "full", "alpha", "wrong size"]
    + ["orphan", "damaged", "other format"]
)


@st.composite
def _defect(draw: st.DrawFn, kind: bytes, number: int) -> list[Entry]:
    """A test image of a kind, with or without its mask."""
    size = draw(st.sampled_from(SIZES))
    plain_names = draw(st.booleans())
    image = draw(_image(number, b"test/" + kind + b"/", size, plain_names))
    name = image.path.rsplit(b"/", 1)[1]
    stem = name.rsplit(b".", 1)[0]
    style = draw(_MASKS)
    content = mask(size, style if style in ("empty", "full", "alpha") else "partly")
    place = b"ground_truth/" + kind + b"/"
    where = {
        "bare name": [stem + b".png"],
        "none": [],
        "several": [stem + b"_mask.png", stem + b".bmp"],
        "folder": [stem + b"/0.png", stem + b"/1.png"],
        "orphan": [stem + b"_mask.png", b"nobody%d_mask.png" % number],
        "other format": [stem + b"_mask.webp"],
    }.get(style, [stem + b"_mask.png"])
    if style == "wrong size":
        content = mask((9, 7), "partly")
    elif style == "damaged":
        content = content[:20]
    masks = [
        Entry(place + each[-LONGEST_NAME:], f"mask, {style}", content)
        for each in where
        if len(each.split(b"/")[0]) <= LONGEST_NAME
    ]
    return [image, *masks]


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """A whole tree: a core that is near to what is asked of users, and oddities in it."""
    layout = draw(st.sampled_from(["plain", "subfolders", "mvtec", "mvtec", "nothing"]))
    content = draw(st.sampled_from(["different", "different", "different", "copies", "black"]))
    count = draw(st.sampled_from([5, 4, 6, 1, 0]))
    entries: list[Entry] = []
    folders = [b""]
    if layout == "plain":
        entries += _normals(b"", count, content)
    elif layout == "subfolders":
        folders = [b"", b"day 1/", b"day 2/"]
        entries += _normals(folders[1], count, content) + _normals(folders[2], 2, "different")
    elif layout == "mvtec":
        entries += _normals(b"train/good/", count, content)
        kinds = draw(st.lists(st.sampled_from(KINDS), max_size=3, unique=True))
        for kind in kinds:
            if kind in (b"good", b"Good", b"OK"):
                copied = draw(st.booleans())
                entries += _normals(b"test/" + kind + b"/", 2, "copies" if copied else "different")
            else:
                for number in range(draw(st.integers(1, 2))):
                    entries += draw(_defect(kind, 100 + number))
        folders = [b"", b"train/", b"train/good/", b"test/", b"ground_truth/"]
        folders += [b"test/" + kind + b"/" for kind in kinds]
    odd = draw(st.integers(0, 5))
    entries += [draw(_odd(number + 10, folders)) for number in range(odd)]
    return Tree(_without_conflicts(entries))


KINDS = [b"good", b"scratch", b"spot", b"NG", b"OK", b"Good", "größe\n".encode(), b"\xff"]
