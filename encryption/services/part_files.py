"""The files of a VM's parts: touched by the worker where it reaches them, else through its host's storage API.

What has to be asked or removed around a conversion; the conversions themselves are `offline` and `host_storage`.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath

from encryption.adapters import image_files, swtpm
from encryption.adapters.image_files import BadTemplate
from encryption.models import WrappedSecret
from encryption.services import host_vtpm, vtpm_files
from inventory.models import Host
from inventory.services.connections import Hypervisor, reaches_files


@dataclass(frozen=True, slots=True)
class PartFiles:
    """Methods raise ImageFileError and OSError for the worker's own files, HypervisorError for the host's."""

    hypervisor: Hypervisor
    host: Host

    @property
    def are_reached(self) -> bool:
        return reaches_files(self.host)

    def exist(self, path: str) -> bool:
        if self.are_reached:
            return image_files.exists(path)
        return bool(path) and self.hypervisor.file_facts(path) is not None

    def free_bytes(self, path: str) -> int:
        """Free on the file system that holds the folder of `path`."""
        if self.are_reached:
            return image_files.free_bytes(path)
        return self.hypervisor.free_bytes(str(PurePosixPath(path).parent))

    def destroy(self, path: str, *, wipe: bool) -> None:
        if self.are_reached:
            image_files.destroy(path)
        else:
            self.hypervisor.delete_file(path, wipe=wipe)

    def copy_variable_store(self, template: str, target: str) -> None:
        """A firmware's variable store from its template, which a definition names: see `image_files`. NOT whole or not
        at all where the host writes it; torn, the firmware finds its own checksums wrong and begins anew."""
        if self.are_reached:
            image_files.copy_variable_store(template, target)
            return
        found = self.hypervisor.file_facts(template)
        if found is None or not found.is_regular:
            raise BadTemplate(f"{template} is no regular file")
        content = self.hypervisor.read_file(template, offset=0, length=image_files.MAX_TEMPLATE + 1)
        image_files.check_variable_store(template, content)
        self.hypervisor.create_file(target, size=len(content), head=content)

    def read(self, path: str, limit: int) -> bytes:
        """The whole file; one byte more than `limit` of a longer one."""
        if self.are_reached:
            return image_files.read(path, limit)
        return self.hypervisor.read_file(path, offset=0, length=limit + 1)

    def rewrite(self, path: str, before: bytes, after: bytes) -> None:
        """Other content of the same length, in place. NOT synced where the host writes it."""
        if self.are_reached:
            image_files.rewrite(path, before, after)
        elif before != after:
            self.hypervisor.overwrite_file(path, after)

    # vTPM state

    def has_tpm_state(self, row: WrappedSecret) -> bool:
        """A VM that never ran has no state yet; swtpm makes it, encrypted, at its first start."""
        if self.are_reached:
            return swtpm.state_file(vtpm_files.as_path(row.path)).exists()
        return self.hypervisor.file_facts(host_vtpm.state_file(row.path)) is not None

    def has_encrypted_tpm_state(self, path: str) -> bool:
        if self.are_reached:
            return vtpm_files.is_encrypted(path)
        return host_vtpm.is_encrypted(self.hypervisor, path)

    def has_staged_tpm_state(self, row: WrappedSecret) -> bool:
        if self.are_reached:
            return vtpm_files.staged(row).exists()
        return host_vtpm.is_staged(self.hypervisor, row)

    def exchange_tpm_state(self, row: WrappedSecret) -> None:
        if self.are_reached:
            vtpm_files.exchange(row)
        else:
            host_vtpm.exchange(self.hypervisor, row)

    def drop_staged_tpm_state(self, row: WrappedSecret) -> None:
        if self.are_reached:
            vtpm_files.drop_staged(row)
        else:
            host_vtpm.drop_staged(self.hypervisor, row)

    def destroy_old_tpm_state(self, row: WrappedSecret) -> None:
        """What the exchange has put aside; through the storage API it puts nothing aside."""
        if self.are_reached:
            vtpm_files.destroy(row.plain_path)

    def read_tpm_state(self, path: str) -> bytes | None:
        """The state in the folder `path`; None where there is none."""
        return vtpm_files.read(path) if self.are_reached else host_vtpm.read(self.hypervisor, path)

    def replace_tpm_state(self, path: str, made: bytes) -> None:
        """Other content for the state of a powered-off VM; see `finish_replacing_tpm_state`."""
        if self.are_reached:
            vtpm_files.replace(path, made)
        else:
            host_vtpm.replace(self.hypervisor, path, made)

    def finish_replacing_tpm_state(self, path: str) -> None:
        """After a kill in `replace_tpm_state`: a state is there again, the old or the new one."""
        if not self.are_reached:
            host_vtpm.finish_replacing(self.hypervisor, path)

    def destroy_tpm_state(self, path: str) -> None:
        """Of a VM that has no vTPM any more."""
        if self.are_reached:
            vtpm_files.destroy(path)
        else:
            host_vtpm.destroy(self.hypervisor, path)
