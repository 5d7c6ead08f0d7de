"""The catalogue that is shipped, and what a user's own file makes of it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qemuctl import paths
from qemuctl.errors import SpecError
from qemuctl.image.catalog import Entry, catalog, near, user_file
from qemuctl.image.checksums import Checksum
from qemuctl.spec.scalars import check_name
from qemuctl.units import GIB, MIB
from tests.hostile import ODD, fuzzed, trees

HOSTS = {
    "cloud.debian.org",
    "cloud-images.ubuntu.com",
    "download.fedoraproject.org",
    "dl-cdn.alpinelinux.org",
    "dl.rockylinux.org",
    "geo.mirror.pkgbuild.com",
    "download.opensuse.org",
}
DIGEST = "sha256:" + "a" * 64


@pytest.fixture(autouse=True)
def own(bare_home: Path) -> Path:
    """The user's own file, whose folder is there."""
    path = user_file()
    path.parent.mkdir(parents=True)
    return path


def test_the_file_is_where_xdg_says(
    bare_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert paths.config_home() == bare_home / "config"
    monkeypatch.delenv("QEMUCTL_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/c")
    assert user_file() == Path("/c/qemuctl/catalog.yaml")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.config_home() == tmp_path / ".config/qemuctl"


def test_well_known_distributions_are_there() -> None:
    families = {name.split("-")[0] for name in catalog()}
    assert families == {
        "debian", "ubuntu", "fedora", "alpine", "rocky", "arch", "opensuse"
    }  # fmt: skip


@pytest.mark.parametrize("name", list(catalog()))
def test_each_shipped_entry_is_whole_and_from_its_distribution(name: str) -> None:
    entry = catalog()[name]
    assert check_name(name) == name
    assert entry.checksum is not None
    for url in (entry.url, entry.checksum):
        assert urlsplit(url).scheme == "https"
        assert urlsplit(url).hostname in HOSTS
        assert not urlsplit(url).query
    # Fetched together: what is checked lies beside what it is checked with.
    assert entry.checksum.rpartition("/")[0] == entry.url.rpartition("/")[0]
    assert entry.checksum != entry.url
    assert entry.filename.endswith((".qcow2", ".img"))
    assert entry.user
    assert 256 * MIB <= entry.memory <= 2 * GIB
    assert entry.description != Entry(url=entry.url).description


def test_versions_in_a_url_agree() -> None:
    fedora = next(entry for name, entry in catalog().items() if "fedora" in name)
    assert fedora.checksum is not None
    version = fedora.filename.removesuffix(".x86_64.qcow2").partition("Generic-")[2]
    assert fedora.checksum.endswith(f"/Fedora-Cloud-{version}-x86_64-CHECKSUM")


def test_a_user_changes_one_key_of_an_entry(own: Path) -> None:
    before = catalog()["debian-13"]
    own.write_text("debian-13:\n  url: http://mirror.example/debian.qcow2\n")
    after = catalog()["debian-13"]
    assert after.url == "http://mirror.example/debian.qcow2"
    assert after == before.model_copy(update={"url": after.url})


def test_a_user_adds_and_removes_entries(own: Path) -> None:
    before = set(catalog())
    own.write_text("mine:\n  url: https://a.example/x.raw\n  format: raw\narch: null\n")
    found = catalog()
    assert set(found) == before - {"arch"} | {"mine"}
    assert found["mine"].user is None
    assert found["mine"].memory == 512 * MIB


@pytest.mark.parametrize("text", ["", "\n# nothing yet\n\n", "gone-99: null\n"])
def test_a_file_that_changes_nothing_is_fine(own: Path, text: str) -> None:
    before = catalog()
    own.write_text(text)
    assert catalog() == before


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: [\n", 1, "not valid YAML"),
        ("- a\n", 1, "must be lines of"),
        ("arch: null\nmine: 5\n", 2, "mine: not `key: value` lines"),
        ("mine:\n  user: me\n", 1, "mine.url: missing"),
        ("arch:\n  user: me\n  usr: x\n", 3, "unknown key: usr"),
        ("arch:\n  url: ftp://x/y\n", 2, "arch.url: not an http or https URL: ftp:"),
        ("arch:\n  url: https://x/\n", 2, "without the name of a file"),
        ("arch:\n  url: 'https://[x/y'\n", 2, "arch.url: "),
        ("arch:\n  memory: big\n", 2, "arch.memory: not a size"),
        ("arch:\n  format: vmdk\n", 2, "arch.format: unknown value: 'vmdk'"),
        ("arch:\n  checksum: xyz\n", 2, "arch.checksum: not a checksum: 'xyz'"),
        ("../x:\n  url: https://x/y\n", 1, "not a name"),
    ],
)
def test_a_mistake_is_told_with_file_and_line(
    own: Path, text: str, line: int, message: str
) -> None:
    own.write_text(text)
    with pytest.raises(SpecError) as caught:
        catalog()
    assert str(caught.value).startswith(f"{own}:{line}: ")
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(own: Path) -> None:
    own.mkdir()
    with pytest.raises(SpecError, match="cannot be read") as caught:
        catalog()
    assert caught.value.path == str(own)


async def test_a_checksum_may_stand_in_the_entry_itself() -> None:
    entry = Entry(url="https://x/y.qcow2", checksum=DIGEST.upper())
    assert await entry.expected() == Checksum("sha256", "a" * 64)
    assert await Entry(url="https://x/y.qcow2").expected() is None


def test_the_name_of_the_image_is_that_in_its_url() -> None:
    assert Entry(url="https://x/a%20b.img?y=/z").filename == "a b.img"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("debain-13", "did you mean debian-13?"),
        ("Debian-13", "did you mean debian-13?"),
        ("alpine", "did you mean alpine-3.24?"),
        ("debian", "which one: debian-12, debian-13?"),
        ("windows", None),
    ],
)
def test_a_near_name_is_a_hint(name: str, hint: str | None) -> None:
    known = ["debian-13", "debian-12", "alpine-3.24", "arch"]
    assert near(name, known) == hint


KEYS = st.sampled_from(
    ["debian-13", "mine", "x", "-x", *Entry.model_fields, "url ", "", "<<"]
)
ENTRIES = st.dictionaries(
    KEYS,
    trees(KEYS) | st.dictionaries(KEYS, st.sampled_from(ODD) | trees(KEYS), max_size=4),
    max_size=4,
)


@fuzzed(100)
@given(
    ENTRIES.map(lambda data: yaml.safe_dump(data).encode(errors="surrogatepass"))
    | st.binary(max_size=60)
    | st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass"))
)
def test_any_file_is_a_catalogue_or_a_spec_error(own: Path, text: bytes) -> None:
    own.write_bytes(text)
    with contextlib.suppress(SpecError):
        assert all(isinstance(entry.filename, str) for entry in catalog().values())
