"""Key providers, keys, wrapped secrets, storage policies and what is wanted of one VM, a module for each noun.

No row holds a key in clear: keys of the KMS are known by their IDs, data keys are kept wrapped, and the console's own
client keys are sealed under the console key, which only workers have.
"""

from encryption.models.files import Bundle as Bundle
from encryption.models.files import CryptoInventory as CryptoInventory
from encryption.models.files import Leftover as Leftover
from encryption.models.keys import Key as Key
from encryption.models.kms import ClientKeyUpload as ClientKeyUpload
from encryption.models.kms import KmsCluster as KmsCluster
from encryption.models.kms import KmsServer as KmsServer
from encryption.models.kms import TransportKey as TransportKey
from encryption.models.policies import ChosenPolicies as ChosenPolicies
from encryption.models.policies import Compliance as Compliance
from encryption.models.policies import DiskPolicy as DiskPolicy
from encryption.models.policies import StoragePolicy as StoragePolicy
from encryption.models.processes import CryptoProcess as CryptoProcess
from encryption.models.secrets import OPENED_BY_SECRET as OPENED_BY_SECRET
from encryption.models.secrets import Purpose as Purpose
from encryption.models.secrets import Stage as Stage
from encryption.models.secrets import WrappedSecret as WrappedSecret
from encryption.models.vms import EncryptedVmotion as EncryptedVmotion
from encryption.models.vms import LockCause as LockCause
from encryption.models.vms import MigrationProbe as MigrationProbe
from encryption.models.vms import VmMigration as VmMigration
from encryption.models.vms import VmSecurity as VmSecurity
from encryption.models.vms import VtpmEndorsement as VtpmEndorsement
