"""The icon sprite, the check of the npm packages' contents, and the lock file."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from console.launch import assets
from console.launch.steps import LaunchError, Steps
from tests.launch.conftest import ROOT

LOCK = """import{renderIcon as C}from"../icon.renderer.js";const V="lock",H=["lock",C({outline:'<path d="M17 23"/>',\
outlineBadged:'<path d="M1 1"/>',solid:'<path fill-rule="evenodd" d="M26 14"/><circle cx="1" cy="2" r="3"/>'})];"""


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A node_modules folder with the files that are read, small."""
    made = tmp_path / "node_modules"
    shapes = made / assets.ICON_SHAPES
    shapes.mkdir(parents=True)
    (shapes / "lock.js").write_text(LOCK)
    (shapes / "angle.js").write_text("""const o=["angle",e({outline:'<path d="M29,22"/>'})];""")
    (shapes / "styled.js").write_text("""C({outline:'<path style="fill:red" d="M1 1"/>'})""")
    (shapes / "scripted.js").write_text("""C({outline:'<path onclick="x()" d="M1 1"/><script>x()</script>'})""")
    for name, content in ((assets.STYLE_SHEET, "a{}\n/*# sourceMappingURL=clr-ui.min.css.map */"), (assets.AXE, "axe")):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(content)
    return made


def test_sprite_has_outline_and_solid_symbols(modules: Path) -> None:
    svg = assets.sprite(["lock", "lock-solid", "angle"], modules / assets.ICON_SHAPES)
    name = "{http://www.w3.org/2000/svg}"
    symbols = {symbol.get("id"): symbol for symbol in ElementTree.fromstring(svg)}  # noqa: S314  made here
    assert list(symbols) == ["lock", "lock-solid", "angle"]
    assert [child.get("d") for child in symbols["lock"]] == ["M17 23"]
    assert [child.tag for child in symbols["lock-solid"]] == [f"{name}path", f"{name}circle"]
    assert {symbol.get("viewBox") for symbol in symbols.values()} == {"0 0 36 36"}


@pytest.mark.parametrize(
    ("icon", "reason"),
    [
        ("nothing", "'nothing' does not exist"),
        ("angle-solid", "'angle' has no solid form"),
        ("styled", "more than plain geometry"),
        ("scripted", "more than plain geometry"),
        ("../../../secret", "is not a name"),
        ('x"><script>', "is not a name"),
    ],
)
def test_sprite_refuses(modules: Path, icon: str, reason: str) -> None:
    with pytest.raises(LaunchError, match=reason):
        assets.sprite([icon], modules / assets.ICON_SHAPES)


def test_icon_list_takes_comments_and_refuses_repetition() -> None:
    assert assets.read_icon_list("# all\nlock\n\n key-solid  # filled\n") == ["lock", "key-solid"]
    with pytest.raises(LaunchError, match="listed twice: lock"):
        assets.read_icon_list("lock\nkey\nlock\n")


def test_changed_sources_are_refused_by_name(modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = tmp_path / "assets.json"
    listed.write_text(json.dumps(assets.source_digests(modules)))
    monkeypatch.setattr(assets, "SOURCES", listed)
    assets.check_sources(modules)
    with (modules / assets.ICON_SHAPES / "angle.js").open("a") as file:
        file.write(" ")
    with pytest.raises(LaunchError, match=assets.ICON_SHAPES) as caught:
        assets.check_sources(modules)
    assert assets.STYLE_SHEET not in str(caught.value)


def test_build_writes_what_is_served_and_keeps_test_tools_apart(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "assets.json"
    listed.write_text(json.dumps(assets.source_digests(modules)))
    monkeypatch.setattr(assets, "SOURCES", listed)
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "icons.txt").write_text("lock\n")
    (tmp_path / "package-lock.json").write_text("{}")
    assets.build(Steps(tmp_path / "stamps"), root=tmp_path, target=tmp_path / "out", test_target=tmp_path / "test")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"clr-ui.min.css", "icons.svg", "THIRD-PARTY.txt"}
    # collectstatic would look for the source map that is not served.
    assert (tmp_path / "out" / "clr-ui.min.css").read_text() == "a{}\n"
    assert (tmp_path / "test" / "axe.min.js").read_text() == "axe"


def test_lock_file_pins_contents_and_names_no_host() -> None:
    packages = {
        name: entry for name, entry in json.loads((ROOT / "package-lock.json").read_text())["packages"].items() if name
    }
    assert {"node_modules/@clr/ui", "node_modules/@cds/core", "node_modules/axe-core"} <= packages.keys()
    for name, entry in packages.items():
        assert entry["integrity"].startswith("sha512-"), name
        rest = {key: value for key, value in entry.items() if key != "funding"}  # the authors' own addresses
        assert "://" not in json.dumps(rest), name
    assert "omit-lockfile-registry-resolved=true" in (ROOT / ".npmrc").read_text().splitlines()


def test_dependencies_are_exact_versions() -> None:
    manifest = json.loads((ROOT / "package.json").read_text())
    versions = {**manifest["dependencies"], **manifest["devDependencies"]}
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions.values())


def test_icon_list_of_the_product_is_well_formed() -> None:
    names = assets.read_icon_list((ROOT / "static" / "icons.txt").read_text())
    assert {"vm", "host", "lock", "key", "shield-check"} <= set(names)
