"""The state folder (`var/`): where everything lives that an installation makes, and the secrets drawn once.

Every folder is 0700 and every secret 0600. All processes of a local installation run as one user, so file modes keep
other users of the machine out, not one process from another; what a process is not told, it does not load.
"""

import os
import secrets
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from console.env import env_str
from console.launch.steps import LaunchError

ADMINISTRATOR = "administrator"
# A unix socket's path holds 107 bytes (unix(7)); supervisord appends its pid while it makes its own.
LONGEST_SOCKET_FOLDER = 80


@dataclass(frozen=True, slots=True)
class State:
    """Paths below one state folder. Making the value touches nothing; `create` does."""

    folder: Path

    @property
    def secrets(self) -> Path:
        return self.folder / "secrets"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def database(self) -> Path:
        return self.folder / "db"

    @property
    def redis(self) -> Path:
        return self.folder / "redis"

    @property
    def assets(self) -> Path:
        return self.folder / "assets"

    @property
    def static(self) -> Path:
        return self.folder / "static"

    @property
    def tls(self) -> Path:
        return self.folder / "tls"

    @property
    def home(self) -> Path:
        """HOME of the processes: no dot file of a person's own home has a say in a service."""
        return self.folder / "home"

    @property
    def lab(self) -> Path:
        return self.folder / "lab"

    @property
    def cache(self) -> Path:
        """Downloads that outlive the lab, so that the next one needs no network."""
        return self.folder / "cache"

    @property
    def stamps(self) -> Path:
        return self.folder / "stamps"

    @property
    def test_assets(self) -> Path:
        return self.folder / "test-assets"

    @property
    def test_receivers(self) -> Path:
        return self.folder / "test-receivers"

    @property
    def secret_key(self) -> Path:
        return self.secrets / "secret_key"

    @property
    def redis_password(self) -> Path:
        return self.secrets / "redis_password"

    @property
    def console_key(self) -> Path:
        return self.secrets / "console_key"

    @property
    def administrator_password(self) -> Path:
        return self.secrets / "administrator_password"

    @property
    def database_url(self) -> Path:
        return self.secrets / "database_url"

    @property
    def redis_url(self) -> Path:
        return self.secrets / "redis_url"

    def keep_url(self, name: str, kept: Path) -> Path | None:
        """The file with the URL that the variable `name` gives, or `name`_FILE, or that was given to an earlier start;
        None: there never was one.

        A start without it must not go to another, empty server: a URL is kept at `kept`, a file by a link there.
        """
        url, file = env_str(name, ""), env_str(f"{name}_FILE", "")
        if url and file:
            raise LaunchError(f"set {name} or {name}_FILE, not both")
        if url:
            write_private(kept, url + "\n")
        elif file and Path(file).resolve() != kept.resolve():
            kept.unlink(missing_ok=True)
            kept.symlink_to(Path(file).absolute())
        return kept if kept.is_symlink() or kept.exists() else None

    def create(self) -> list[str]:
        """Make what is missing and put the modes right. Returns the names of the secrets drawn now.

        A secret that exists is never replaced: the console key opens what is sealed in the database. An empty one
        (a full disk, a crash of old) is refused, because a new one in its place would lose that silently.
        """
        for folder in (
            self.folder, self.secrets, self.run, self.log, self.database, self.redis, self.assets, self.static,
            self.home, self.cache, self.stamps,
        ):  # fmt: skip
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        drawn = [
            path.name
            for path, text in (
                (self.secret_key, secrets.token_urlsafe(64)),
                (self.redis_password, secrets.token_urlsafe(32)),
                (self.console_key, secrets.token_hex(32)),
                (self.administrator_password, secrets.token_urlsafe(15)),
            )
            if _draw_once(path, text)
        ]
        return drawn

    def socket_folder(self) -> Path:
        """A private folder for unix sockets: `run`, or one in /var/tmp when its path would be too long for a socket."""
        if len(os.fsencode(self.run)) <= LONGEST_SOCKET_FOLDER:
            return self.run
        link = self.run / "sockets"
        try:
            target = Path(os.readlink(link))
            found = target.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700:
                return target
        except OSError:
            pass  # no link yet, or /var/tmp was cleaned: make a new folder
        link.unlink(missing_ok=True)
        made = Path(tempfile.mkdtemp(prefix="bartizan-", dir="/var/tmp"))  # 0700, unguessable
        link.symlink_to(made)
        return made


def state_of(root: Path) -> State:
    """The state folder of a checkout: BARTIZAN_STATE_DIR, or `var` in it.

    Raises LaunchError for a folder that somebody else filled: as root we would give all of it to the service user.
    """
    named = env_str("BARTIZAN_STATE_DIR", "")
    if not named:
        return State(root / "var")
    folder = Path(named)
    if not folder.is_absolute():
        raise LaunchError(f"BARTIZAN_STATE_DIR must be an absolute path, not {named!r}")
    state = State(folder)
    if folder.exists() and not state.secrets.is_dir() and any(folder.iterdir()):
        raise LaunchError(
            f"{folder} is not empty and no state folder of Bartizan", hint="name a new or an empty folder"
        )
    return state


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, from its first byte on, and never half."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _draw_once(path: Path, text: str) -> bool:
    if path.exists():
        if not path.read_text(encoding="utf-8").strip():
            raise LaunchError(
                f"{path} is empty", hint="restore it from a backup, or remove the state folder to start anew"
            )
        path.chmod(0o600)
        return False
    write_private(path, text + "\n")
    return True
