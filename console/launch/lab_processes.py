"""The local lab's part of the supervision: its key server, two libvirt hosts with TPMs and agents, guests on them."""

from pathlib import Path

from console.launch.address import Listen
from console.launch.processes import Installation, Program
from console.launch.state import State
from console.launch.steps import LaunchError, Steps, digest, run_command
from lab import hosts, kms, layout, processes
from lab.errors import LabError
from lab.layout import Lab
from lab.user import ensure_user

STOP_GUESTS_SECONDS = 45


def prepare(steps: Steps, installation: Installation) -> None:
    """Make the lab's files: downloads and guest images, certificates, the hosts' and the key server's configuration."""
    state = installation.state

    def make() -> str:
        said = run_command(
            [str(installation.python), "-m", "lab", "prepare", "--state", str(state.lab), "--cache", str(state.cache)],
            cwd=installation.root,
            what="preparing the lab",
        )
        _prepare_key_server(_load(state))
        return said.strip()

    # Its own skipping is cheap and knows more than a key could, so this step has none.
    steps.run("lab", "key server, two libvirt hosts, guests", make)


def programs(installation: Installation) -> list[Program]:
    """The lab's processes, for a lab that `prepare` has made."""
    found = _load(installation.state)
    daemons = []
    for host in found.hosts:
        command, environment = hosts.host_command(found, host, dies_with_caller=True)
        daemons.append(Program("lab", f"host-{host.name}", tuple(command), environment, stop_seconds=15))
        machine = (
            str(installation.python), "-m", "lab.machine", "--state", str(found.state), "--host", host.name,
            "--registrar", _reachable(installation.registrar),
        )  # fmt: skip
        daemons.append(Program("lab", f"machine-{host.name}", machine, stop_seconds=30))
    key_server = kms.KmsLayout.load(_key_server_folder(found))
    guests = (
        str(installation.python), "-m", "lab.keep_guests",
        "--state", str(installation.state.lab), "--cache", str(installation.state.cache),
    )  # fmt: skip
    return [
        Program("lab", "kms", tuple(kms.command(key_server))),
        *daemons,
        Program("guests", "guests", guests, stop_seconds=STOP_GUESTS_SECONDS),
    ]


def identity(state: State) -> str:
    """Changes with the lab: another lab, other ports. What was entered into the inventory once is the user's then."""
    found = _load(state)
    return digest([layout.record(found.state), kms.KmsLayout.load(_key_server_folder(found)).settings])


def end_leftovers(state: State) -> None:
    """End the lab's daemons, guests and TPM emulators that still run; normally there are none."""
    processes.end(_load(state))


def _load(state: State) -> Lab:
    try:
        found = layout.load(state.lab, ensure_user())
    except LabError as exc:
        raise LaunchError(str(exc)) from exc
    if found is None:
        raise LaunchError(f"there is no lab in {state.lab}")
    return found


def _prepare_key_server(found: Lab) -> None:
    """`kms` in the lab's folder is the key server's; a link where the lab's user cannot reach that folder itself."""
    folder = _key_server_folder(found)
    try:
        if folder.exists():
            port = kms.KmsLayout.load(folder).port
        else:
            (port,) = layout.free_ports(1)
        kms.prepare(folder, port)
    except (LabError, OSError, ValueError, KeyError) as exc:
        raise LaunchError(f"the lab's key server cannot be prepared: {exc}") from exc
    link = found.state / "kms"
    if folder != link and not link.is_symlink():
        link.symlink_to(folder)


def _reachable(registrar: Listen) -> str:
    """Where agents on this machine find it."""
    return Listen(registrar.local_host, registrar.port).bind


def _key_server_folder(found: Lab) -> Path:
    reachable = found.base.is_relative_to(found.state)
    return (found.state if reachable else found.base) / "kms"
