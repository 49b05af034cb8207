"""Hostile sources: how each is made, what it is, and what must become of it."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from hostile_images import PIXELS, encoded
from outcomes import LABELED
from shards import tar_bytes, write_table, write_tar

GOOD = encoded(PIXELS[:4, :5])
NEIGHBOR = "neighbor.png"
Outcome = dict[str, str] | str
"""Key -> LABELED or an error code, or words of the line that the job stops with."""


class HostileSource(NamedTuple):
    """`what` and `then` are the words of docs/input.md; `make` returns the URL of a source in a folder."""

    what: str
    then: str
    make: Callable[[Path], str]
    outcome: Outcome
    options: dict[str, Any] | None = None


SOURCES: dict[str, HostileSource] = {}
Make = Callable[[Path], str]


def case(what: str, then: str, outcome: Outcome, **options: Any) -> Callable[[Make], Make]:
    """Decorator: the function makes such a source."""

    def add(make: Make) -> Make:
        SOURCES[make.__name__] = HostileSource(what, then, make, outcome, options)
        return make

    return add


# Names

NAMES = {
    "a newline, a tab, quotes, a script, a formula": ["a\nb.png", "a\tb.png", "\"'`.png", "<script>.png", "=cmd().png"],
    "NFC and NFD, right-to-left marks, emoji": [
        unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png"), "gpj\u202e.png", "🦊\u200d.png",
    ],
    "bytes that are no UTF-8, backslashes that look like our escapes": ["caf\udce9.png", "caf\\xe9.png", "\\.png"],
    "several dots, dots in folders, spaces, globs, percent signs": [
        "a.b.png", "dir.v1/x.png", " a .png", "[a]*?.png", "%2e%2e.png", "-rf.png", "a#2.png",
    ],
    "255 bytes, the most of a disk": ["x" * 251 + ".png"],
}  # fmt: skip
EQUAL_BASE_NAMES = ["0/x.png", "1/x.png", "0/0/x.png"]


def _name_cases() -> None:
    for number, (what, names) in enumerate(
        {**NAMES, "equal base names in different folders": EQUAL_BASE_NAMES}.items()
    ):
        keys = {name.replace("\\x", "\\x5cx").replace("\udce9", "\\xe9"): LABELED for name in names}

        def in_folder(root: Path, names: list[str] = names) -> str:
            for name in names:
                (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
                (root / "images" / name).write_bytes(GOOD)
            return str(root / "images")

        def in_tar(root: Path, names: list[str] = names) -> str:
            write_tar(str(root / "x.tar"), [(name, GOOD) for name in names])
            return str(root / "x.tar")

        for place, make in {"folder": in_folder, "tar": in_tar}.items():
            SOURCES[f"names_{number}_in_{place}"] = HostileSource(
                what, "a key of its own each, that reads back", make, keys
            )


_name_cases()


# Tars


def member(
    name: str, data: bytes = GOOD, kind: bytes = tarfile.REGTYPE, form: int = tarfile.PAX_FORMAT, **fields: Any
) -> bytes:
    """One member: its header, and its data. Fields are those of `tarfile.TarInfo`."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    header = info.tobuf(form, "utf-8", "surrogateescape")
    return header + data + bytes(-len(data) % 512)


def with_size(header: bytes, field: bytes) -> bytes:
    """The same header with another size in it, and its checksum."""
    block = bytearray(header[-512:])
    block[124:136] = field.ljust(12, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return header[:-512] + bytes(block)


END = bytes(1024)


def tar_file(root: Path, *members: bytes, end: bytes = END) -> str:
    """A tar between whose first and last members a good neighbour lies."""
    (root / "x.tar").write_bytes(b"".join(members) + member(NEIGHBOR) + end)
    return str(root / "x.tar")


@case("`../`, absolute names, drive letters", "labeled; a name is only ever a name", {
    "../../outside.png": LABELED, "/etc/outside.png": LABELED, "C:\\outside.png": LABELED, NEIGHBOR: LABELED,
})  # fmt: skip
def tar_traversal(root: Path) -> str:
    return tar_file(root, *(member(name) for name in ("../../outside.png", "/etc/outside.png", "C:\\outside.png")))


@case("a NUL in a PAX name", "labeled; the name reads back", {"a\0b.png": LABELED, NEIGHBOR: LABELED})
def tar_nul(root: Path) -> str:
    return tar_file(root, member("x.png", pax_headers={"path": "a\0b.png"}))


LONG = "d/" * 49_998 + "x.png"


@case("names of 100,000 bytes", "labeled", {LONG[1:]: LABELED, "x" + LONG[2:]: LABELED, NEIGHBOR: LABELED})
def tar_long_names(root: Path) -> str:
    return tar_file(root, member(LONG[1:]), member("x" + LONG[2:], form=tarfile.GNU_FORMAT))


@case("members of one name", "each of them, the second as `x.png#2`", {
    "x.png": LABELED, "x.png#2": "not_an_image", "x.png#3": LABELED, NEIGHBOR: LABELED,
})  # fmt: skip
def tar_duplicates(root: Path) -> str:
    return tar_file(root, member("x.png"), member("x.png", b"no"), member("x.png"))


@case("links, hard links, devices, pipes, folders with an image's name", "left out, and counted", {NEIGHBOR: LABELED})
def tar_links(root: Path) -> str:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    return tar_file(root, *(member("x.png", b"", kind, linkname="/etc/passwd") for kind in kinds))


@case("members of one sample that are apart", "each image; other members are not read", {
    "1.png": LABELED, "2.png": LABELED, NEIGHBOR: LABELED,
})  # fmt: skip
def tar_apart(root: Path) -> str:
    return tar_file(root, member("1.png"), member("2.json", b"{}"), member("2.png"), member("1.json", b"["))


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (99,)


@case("pickles, `.pt` and `.npy` members", "never looked at; under an image's name: row `not_an_image`", {
    "x.png": "not_an_image", NEIGHBOR: LABELED,
})  # fmt: skip
def tar_pickles(root: Path) -> str:
    code = pickle.dumps(Code())
    return tar_file(root, *(member(name, code) for name in ("x.pkl", "x.pyd", "x.pt", "x.npy", "x.png", "x.pickle")))


@case("hidden files, `._x.png` of macOS", "left out", {NEIGHBOR: LABELED})
def tar_hidden(root: Path) -> str:
    return tar_file(root, member("._x.png"), member(".git/x.png"), member("__MACOSX/._x.png"))


@case("an empty tar, tars behind one another", "fine: their images", {"1.png": LABELED, "2.png": LABELED})
def tars_behind_one_another(root: Path) -> str:
    (root / "1.tar").write_bytes(bytes(10_240))
    (root / "2.tar").write_bytes(tar_bytes({"1.png": GOOD}) + tar_bytes({"2.png": GOOD}))
    return str(root)


DAMAGED = "stop: `damaged or cut off`, with the place"


def _damaged_tar(name: str, what: str, *members: bytes, end: bytes = END, words: str = "damaged or cut off") -> None:
    def make(root: Path) -> str:
        return tar_file(root, member("first.png"), *members, end=end)

    SOURCES[name] = HostileSource(what, DAMAGED, make, words)


def _damaged_tars() -> None:
    cut = "a tar that is cut off, between members or in one"
    _damaged_tar("tar_without_end", cut, end=b"")
    whole = tar_bytes({"1.png": GOOD, "2.png": GOOD * 99})
    for place in (0, 300, 700, 1_100, 4_000):

        def make(root: Path, place: int = place) -> str:
            (root / "x.tar").write_bytes(whole[:place])
            return str(root / "x.tar")

        SOURCES[f"tar_cut_at_{place}"] = HostileSource(cut, DAMAGED, make, "damaged or cut off")
    lies = "a header whose size lies: negative, larger than the file, larger than any header"
    head = member("x.png")[:512]
    _damaged_tar("tar_negative_size", lies, with_size(head, b"\xff" * 11 + b"\0"))
    _damaged_tar("tar_huge_size", lies, with_size(head, b"\x80" + (2**62).to_bytes(11, "big")))
    _damaged_tar("tar_size_beyond_the_end", lies, with_size(head, b"77777777777"))
    _damaged_tar("tar_pax_size_negative", lies, member("x.png", pax_headers={"size": "-1"}))
    _damaged_tar("tar_pax_size_beyond", lies, member("x.png", pax_headers={"size": "9" * 20}))
    _damaged_tar("tar_pax_size_no_number", lies, member("x.png", pax_headers={"size": "many"}))
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
        long = with_size(member("x", b"", kind)[:512], b"%011o" % 2**30)
        _damaged_tar(f"tar_header_of_a_gigabyte_{kind.decode()}", lies, long)
    broken = "a header that makes no sense"
    _damaged_tar("tar_broken_checksum", broken, head[:148] + b"0000000\0" + head[156:])
    _damaged_tar("tar_noise", broken, bytes(range(256)) * 2)
    _damaged_tar("tar_many_headers", broken, member("x", b"", tarfile.XHDTYPE)[:512] * 2_000)
    sparse = member("x.png", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x.png"})
    _damaged_tar("tar_sparse", "a sparse file in a tar", sparse)
    _damaged_tar("tar_old_sparse", "a sparse file in a tar", member("x.png", b"", tarfile.GNUTYPE_SPARSE))


_damaged_tars()


def _compressed_tars() -> None:
    bomb = gzip.compress(bytes(2**24))
    magic = {
        ".tar.gz": bomb,
        ".tgz": bomb,
        ".tar.zst": b"\x28\xb5\x2f\xfd",
        ".tar.bz2": b"BZh9",
        ".tar.xz": b"\xfd7zXZ\0",
    }
    for suffix, data in magic.items():
        for name, then, words in (
            (f"x{suffix}", "stop: `is compressed`, before a byte is unpacked", "is compressed"),
            ("x.tar", "stop: `is compressed`, before a byte is unpacked", "is compressed"),
        ):

            def make(root: Path, name: str = name, data: bytes = data) -> str:
                (root / name).write_bytes(data)
                return str(root / name)

            SOURCES[f"tar_{suffix}_as_{name}"] = HostileSource("a compressed tar, a bomb or not", then, make, words)


_compressed_tars()


# Parquet


@case("nulls and empty values", "row `missing`, row `empty`", {"row-0": LABELED, "row-1": "missing", "row-2": "empty"})
def parquet_nulls(root: Path) -> str:
    write_table(f"{root}/x.parquet", pa.table({"image": pa.array([GOOD, None, b""], pa.binary())}))
    return f"{root}/x.parquet"


@case("Hugging Face's structs, with null structs, null bytes and a path elsewhere", "by their path; row `missing`", {
    "a.png": LABELED, "row-1": "missing", "/etc/passwd": "missing",
})  # fmt: skip
def parquet_structs(root: Path) -> str:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": GOOD, "path": "a.png"}, None, {"bytes": None, "path": "/etc/passwd"}]
    write_table(f"{root}/x.parquet", pa.table({"image": pa.array(images, kind)}))
    return f"{root}/x.parquet"


def _parquet_types() -> None:
    kinds = {
        "large": pa.large_binary(),
        "view": pa.binary_view(),
        "dictionary": pa.dictionary(pa.int32(), pa.binary()),
    }
    for name, kind in kinds.items():

        def make(root: Path, kind: pa.DataType = kind) -> str:
            column = pa.array([GOOD, GOOD, b"no", None], pa.binary())
            column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
            write_table(f"{root}/x.parquet", pa.table({"image": column}))
            return f"{root}/x.parquet"

        what = "large, dictionary-encoded and view columns"
        outcome = {"row-0": LABELED, "row-1": LABELED, "row-2": "not_an_image", "row-3": "missing"}
        SOURCES[f"parquet_{name}"] = HostileSource(what, "as any other", make, outcome)
    for name, column in {
        "int": pa.array([1, 2]),
        "float": pa.array([1.5]),
        "list": pa.array([[GOOD]], pa.list_(pa.binary())),
        "nothing": pa.array([None]),
    }.items():

        def without(root: Path, column: pa.Array = column) -> str:
            write_table(f"{root}/x.parquet", pa.table({"image": column}))
            return f"{root}/x.parquet"

        what = "no column of bytes or of text"
        SOURCES[f"parquet_{name}_column"] = HostileSource(what, "stop: names the columns", without, "--image-column")


_parquet_types()


@case("two columns of bytes", "stop: asks for --image-column", "say with --image-column")
def parquet_two_columns(root: Path) -> str:
    write_table(f"{root}/x.parquet", pa.table({name: pa.array([GOOD], pa.binary()) for name in ("left", "right")}))
    return f"{root}/x.parquet"


def _damaged_parquet() -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array([GOOD] * 9, pa.binary())}), file, write_page_checksum=True)
    whole = file.getvalue()
    damaged = {
        "nothing": b"",
        "magic_alone": b"PAR1",
        "no_footer": whole[:-20],
        "half": whole[: len(whole) // 2],
        "long_footer": whole[:-8] + b"\xff\xff\xff\x7fPAR1",
        "text": b"not a table",
        "noise_in_the_footer": whole[:-100] + bytes(92) + whole[-8:],
        "noise_in_a_page": whole[:60] + bytes(60) + whole[120:],
    }
    for name, data in damaged.items():

        def make(root: Path, data: bytes = data) -> str:
            (root / "x.parquet").write_bytes(data)
            return str(root / "x.parquet")

        what = "a table that is cut off, or damaged in its footer or a page"
        then = "stop: `damaged or cut off`, with its name"
        SOURCES[f"parquet_{name}"] = HostileSource(what, then, make, "x.parquet is damaged or cut off")


_damaged_parquet()


@case("a table where a megabyte stands in a thousand rows", "stop: `a few bytes stand for many times`", "few bytes")
def parquet_bomb(root: Path) -> str:
    value = encoded() + bytes(2**20)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000, pa.int8()), pa.array([value], pa.binary()))
    write_table(f"{root}/x.parquet", pa.table({"image": column}), row_group_size=1_000)
    return f"{root}/x.parquet"


# Lists


def text_list(root: Path, data: bytes) -> str:
    (root / NEIGHBOR).write_bytes(GOOD)
    (root / "x.txt").write_bytes(data)
    return str(root / "x.txt")


@case("blank lines, comments, a byte order mark, other line ends", "left out", {NEIGHBOR: LABELED})
def list_of_little(root: Path) -> str:
    return text_list(root, b"\xef\xbb\xbf# a comment\r\n\r\n  \n\n  neighbor.png \r\n#\n")


@case("missing files, and names that no disk can have", "row `missing`, row `read_error`", {
    "absent.png": "missing", "x" * 100_000: "missing", "a\0b.png": "read_error", "\\xff.png": "missing",
    NEIGHBOR: LABELED,
})  # fmt: skip
def list_of_nothing(root: Path) -> str:
    return text_list(root, b"absent.png\n%s\na\0b.png\n\xff.png\nneighbor.png\n" % (b"x" * 100_000))


@case("folders, pipes and devices", "row `read_error`: not a file", {
    ".": "read_error", "/dev/zero": "read_error", "pipe.png": "read_error", NEIGHBOR: LABELED,
})  # fmt: skip
def list_of_devices(root: Path) -> str:
    os.mkfifo(root / "pipe.png")
    return text_list(root, b".\n/dev/zero\npipe.png\nneighbor.png\n")


@case("schemes that a list may not name", "row `read_error`: not allowed (`--allow-scheme`)", {
    "ftp://host/x.png": "read_error", "data:image/png;base64,AAAA": "missing", "memory://x.png": "read_error",
    "javascript://alert(1)": "read_error", "simplecache::file:///etc/passwd": "missing",
    "s3://b/x::file:///etc": "read_error", NEIGHBOR: LABELED,
})  # fmt: skip
def list_of_schemes(root: Path) -> str:
    lines = [
        b"ftp://host/x.png", b"data:image/png;base64,AAAA", b"memory://x.png", b"javascript://alert(1)",
        b"simplecache::file:///etc/passwd", b"s3://b/x::file:///etc", NEIGHBOR.encode(),
    ]  # fmt: skip
    return text_list(root, b"\n".join(lines))


PRIVATE = (
    "http://127.0.0.1:9/", "http://localhost:9/", "http://[::1]:9/", "http://10.0.0.1/", "http://192.168.1.1/",
    "http://169.254.169.254/latest/meta-data", "http://100.64.0.1/", "http://0.0.0.0/", "http://[fe80::1]/",
    "http://2130706433/", "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::a00:1]/", "http://[fd00::1]/",
    "http://224.0.0.1/",
)  # fmt: skip


@case(
    "web servers of this machine or network, however their address is written",
    "row `read_error`: not on a public address (`--allow-private-addresses`)",
    {**dict.fromkeys(PRIVATE, "read_error"), NEIGHBOR: LABELED},
)
def list_of_private_addresses(root: Path) -> str:
    return text_list(root, "\n".join([*PRIVATE, NEIGHBOR]).encode())


@case("what is no list: a line of megabytes", "stop: `this is no list`", "this is no list")
def list_of_one_line(root: Path) -> str:
    return text_list(root, b"x" * (2**20 + 9))


@case(
    "a CSV file without a clear column, or with a cell of megabytes",
    "stop: asks for --image-column; `damaged`",
    "--image",
)
def csv_without_column(root: Path) -> str:
    (root / "x.csv").write_text("a,b\n1,2\n")
    return str(root / "x.csv")


@case(
    "a CSV file without a clear column, or with a cell of megabytes",
    "stop: asks for --image-column; `damaged`",
    "damaged",
)
def csv_with_a_giant_cell(root: Path) -> str:
    (root / "x.csv").write_text("url\n" + "x" * 200_000)
    return str(root / "x.csv")


@case("short rows and nulls in a CSV file or table", "row `missing`", {"": "missing", NEIGHBOR: LABELED})
def table_with_nulls(root: Path) -> str:
    (root / NEIGHBOR).write_bytes(GOOD)
    write_table(f"{root}/x.parquet", pa.table({"url": pa.array([None, NEIGHBOR], pa.string())}))
    return f"{root}/x.parquet"


# Sizes, and places


@case("a file of more than `--max-image-bytes`", "row `too_large`, and it is not read", {
    "giant.png": "too_large", NEIGHBOR: LABELED,
}, max_image_bytes=4_096)  # fmt: skip
def giant_file(root: Path) -> str:
    (root / "images").mkdir()
    (root / "images" / NEIGHBOR).write_bytes(GOOD)
    with open(root / "images/giant.png", "wb") as file:
        file.truncate(2**40)
    return str(root / "images")


@case("a member of more than `--max-image-bytes`", "row `too_large`, and it is not read", {
    "giant.png": "too_large", NEIGHBOR: LABELED,
}, max_image_bytes=4_096)  # fmt: skip
def giant_member(root: Path) -> str:
    return tar_file(root, member("giant.png", bytes(5_000)))


@case("links to nowhere or themselves, out of the folder, in loops", "row `missing`; read; not followed twice", {
    "gone.png": "missing", "self.png": "missing", "outside.png": LABELED, NEIGHBOR: LABELED,
})  # fmt: skip
def folder_of_links(root: Path) -> str:
    folder = root / "images"
    folder.mkdir()
    (root / "other.png").write_bytes(GOOD)
    (folder / NEIGHBOR).write_bytes(GOOD)
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "self.png").symlink_to("self.png")
    (folder / "outside.png").symlink_to(root / "other.png")
    (folder / "loop").symlink_to(folder)
    return str(folder)


def _places() -> None:
    for name, source in {"long": "x" * 100_000, "nul": "a\0b", "lines": "a\nb", "globs": "*" * 99}.items():

        def make(root: Path, source: str = source) -> str:
            return str(root / source)

        SOURCES[f"place_{name}"] = HostileSource("a SOURCE that no disk can have", "stop: one line", make, "")


_places()
