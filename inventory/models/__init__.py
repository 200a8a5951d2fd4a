"""What there is: places, hosts and virtual machines; jobs, history and roles. A module for each noun.

Models hold fields, constraints and pure properties. Rows of hosts and below mirror what libvirt reports; only
`services/sync.py` writes those facts.
"""

from inventory.models.access import RoleAssignment as RoleAssignment
from inventory.models.history import Alarm as Alarm
from inventory.models.history import AuditKey as AuditKey
from inventory.models.history import Event as Event
from inventory.models.history import EventChain as EventChain
from inventory.models.history import Outcome as Outcome
from inventory.models.history import Severity as Severity
from inventory.models.jobs import LIVE_STATUSES as LIVE_STATUSES
from inventory.models.jobs import OPEN_STATUSES as OPEN_STATUSES
from inventory.models.jobs import Job as Job
from inventory.models.jobs import JobStatus as JobStatus
from inventory.models.jobs import TwoPersonRule as TwoPersonRule
from inventory.models.places import Cluster as Cluster
from inventory.models.places import Datacenter as Datacenter
from inventory.models.places import Datastore as Datastore
from inventory.models.places import Host as Host
from inventory.models.targets import TargetKind as TargetKind
from inventory.models.vms import Disk as Disk
from inventory.models.vms import Firmware as Firmware
from inventory.models.vms import PowerState as PowerState
from inventory.models.vms import VirtualMachine as VirtualMachine
from inventory.models.vms import VmDefinition as VmDefinition
