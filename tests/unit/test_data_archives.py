"""Archives, their table and WMT's SGML: what is named comes out, what is wrong ends in one line."""

import gzip
import io
import tarfile
from collections import namedtuple

import msgspec
import pytest
from wmt14_mirror import small_mirror

import data_prep.system.space
from data_prep.bench.synthetic import segments
from data_prep.corpora.archives import extract_members
from data_prep.corpora.sgml import read_segments
from data_prep.corpora.sources import WMT14_TABLE, read_sources
from data_prep.corpora.wmt14_en_de import Wmt14, line_numbers
from data_prep.spec import DataError
from data_prep.system.files import write_json
from data_prep.system.space import require_space
from data_prep.text import read_lines


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "a.tgz"
    with tarfile.open(path, "w:gz") as stream:
        for name in ("../evil", "/tmp/evil", "./dir/a.en", "dir/b.de", "dir/unwanted"):
            entry = tarfile.TarInfo(name)
            content = name.encode() * 10_000
            entry.size = len(content)
            stream.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("dir/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        stream.addfile(link)
    return path


def test_named_members_alone_come_out(archive, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    extract_members(archive, {"dir/a.en": out / "x", "dir/b.de": out / "y"})
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tgz", "out", "x", "y"]
    assert (out / "x").read_bytes() == b"./dir/a.en" * 10_000


def test_missing_members_are_named(archive, tmp_path):
    with pytest.raises(DataError, match=r"a\.tgz: lacks dir/c\.en, dir/d\.de: "):
        extract_members(archive, {"dir/c.en": tmp_path / "x", "dir/d.de": tmp_path / "y"})


def test_a_member_that_is_a_link(archive, tmp_path):
    with pytest.raises(DataError, match="dir/link is a link"):
        extract_members(archive, {"dir/link": tmp_path / "x"})


@pytest.mark.parametrize("damage", ["truncated", "text", "wrong", "cut_tar"])
def test_a_damaged_archive(archive, tmp_path, damage):
    whole = archive.read_bytes()
    content = {
        "truncated": whole[: len(whole) // 2],
        "text": b"<html>not found</html>",
        "wrong": whole[:40] + b"\x00\xff" * 20 + whole[80:],
        "cut_tar": gzip.compress(gzip.decompress(whole)[:25_000]),
    }[damage]
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged archive|lacks"):
        extract_members(archive, {"dir/unwanted": tmp_path / "x"})


def test_segments_as_sacrebleu_reads_them(tmp_path):
    from sacrebleu.dataset.fake_sgml import FakeSGMLDataset

    path, expected = tmp_path / "a.sgm", tmp_path / "a.txt"
    lines = ["A &amp; B", "  two   spaces ", "tab\there", "a < b > c </p>", "\u2028 x", "ü"]
    path.write_text(
        segments(lines) + '<hl>\n<seg id="9"> headline </seg>\n</hl>\n', encoding="utf-8"
    )
    dataset = FakeSGMLDataset("x", data=[], description="", langpairs={})
    dataset._convert_format(str(path), str(expected))
    assert list(read_segments(path)) == list(read_lines(expected))
    assert next(read_segments(path)) == "A &amp; B"
    assert len(list(read_segments(path))) == 7


def test_the_table_of_wmt14():
    table = read_sources(WMT14_TABLE)
    train = [archive for archive in table.archives if archive.role == "train"]
    assert sum(archive.pairs for archive in train) == 4_520_620
    assert all(archive.size_bytes for archive in train)


def test_members_of_the_test_sets_are_those_of_sacrebleu():
    from sacrebleu.dataset import DATASETS

    table = {archive.name: archive for archive in read_sources(WMT14_TABLE).archives}
    for name, key in {
        "newstest2013": "wmt13",
        "newstest2014-full": "wmt14/full",
        "newstest2014-filtered": "wmt14",
    }.items():
        dataset = DATASETS[key]
        assert list(table[name].members) == dataset.langpairs["en-de"]
        assert table[name].url in dataset.data
        assert table[name].checksum == f"md5:{dataset.md5[0]}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": ["../x.en", "x.de"]}, "would leave the folder"),
        ({"members": ["/x.en", "x.de"]}, "would leave the folder"),
        ({"role": "test"}, "one archive for dev"),
        ({"url": "ftp://a/b"}, "url"),
        ({"checksum": "md5:12"}, "checksum"),
        ({"name": "../x"}, "name"),
        ({"name": "newstest2013"}, "the same name"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_bad_table(tmp_path, change, message):
    table = msgspec.json.decode(WMT14_TABLE.read_bytes())
    table["archives"][0] |= change
    write_json(tmp_path / "t.json", table)
    with pytest.raises(DataError, match=message):
        read_sources(tmp_path / "t.json")


def test_line_numbers():
    full = [("a", "x"), ("b", "y"), ("a", "x"), ("C.", "z")]
    assert line_numbers([("a", "x"), ("c", "z!"), ("a", "x")], full) == [1, 4, 3]
    assert line_numbers([("a", "x")] * 3, full) == [1, 3]
    assert line_numbers([("b", "x")], full) == []


def test_another_number_of_segments_is_an_error(tmp_path):
    spec = small_mirror(tmp_path / "mirror")
    table = msgspec.json.decode((tmp_path / "mirror" / "sources.json").read_bytes())
    table["archives"][4]["pairs"] = 31
    write_json(tmp_path / "mirror" / "sources.json", table)
    corpus = Wmt14(spec)
    corpus.extract(tmp_path / "mirror", tmp_path)
    with pytest.raises(DataError, match=r"30 segments in test-full/.*expected 31"):
        list(corpus.pairs("test", tmp_path))


def test_where_archives_come_from_does_not_matter(tmp_path):
    spec = small_mirror(tmp_path / "mirror")
    before = Wmt14(spec).inputs
    path = tmp_path / "mirror" / "sources.json"
    table = msgspec.json.decode(path.read_bytes())
    table["archives"][0]["url"] = table["archives"][0]["url"].replace("www", "mirror")
    write_json(path, table)
    assert Wmt14(spec).inputs == before
    table["archives"][0]["members"].reverse()
    write_json(path, table)
    assert Wmt14(spec).inputs != before


def test_disk_space_is_asked_for_before(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(data_prep.system.space.shutil, "disk_usage", lambda _: usage(5_000_000_000))
    require_space(tmp_path, 5_000_000_000)
    with pytest.raises(DataError, match=r"10\.3 GB more disk space needed, 5\.0 GB free: "):
        require_space(tmp_path, 10_300_000_000)
