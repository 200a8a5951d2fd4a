"""What the routes of the inventory give and take, a module for each noun.

Facts only: no parameters, checkpoints or claims of jobs.
"""

from inventory.api.schemas.activity import AlarmOut as AlarmOut
from inventory.api.schemas.activity import AlarmPage as AlarmPage
from inventory.api.schemas.activity import CheckpointOut as CheckpointOut
from inventory.api.schemas.activity import ChildrenOut as ChildrenOut
from inventory.api.schemas.activity import EventOut as EventOut
from inventory.api.schemas.activity import EventPage as EventPage
from inventory.api.schemas.activity import HitOut as HitOut
from inventory.api.schemas.activity import JobOut as JobOut
from inventory.api.schemas.activity import JobPage as JobPage
from inventory.api.schemas.activity import NodeOut as NodeOut
from inventory.api.schemas.common import FolderPath as FolderPath
from inventory.api.schemas.common import Name as Name
from inventory.api.schemas.common import Ref as Ref
from inventory.api.schemas.common import Target as Target
from inventory.api.schemas.common import Uri as Uri
from inventory.api.schemas.places import ClusterIn as ClusterIn
from inventory.api.schemas.places import ClusterOut as ClusterOut
from inventory.api.schemas.places import ClusterPage as ClusterPage
from inventory.api.schemas.places import DatacenterOut as DatacenterOut
from inventory.api.schemas.places import DatacenterPage as DatacenterPage
from inventory.api.schemas.places import DatastoreOut as DatastoreOut
from inventory.api.schemas.places import DatastorePage as DatastorePage
from inventory.api.schemas.places import HostChange as HostChange
from inventory.api.schemas.places import HostChanged as HostChanged
from inventory.api.schemas.places import HostIn as HostIn
from inventory.api.schemas.places import HostOut as HostOut
from inventory.api.schemas.places import HostPage as HostPage
from inventory.api.schemas.places import HostState as HostState
from inventory.api.schemas.places import NameIn as NameIn
from inventory.api.schemas.virtual_machines import ConfirmNameIn as ConfirmNameIn
from inventory.api.schemas.virtual_machines import ConsoleTextOut as ConsoleTextOut
from inventory.api.schemas.virtual_machines import DiskOut as DiskOut
from inventory.api.schemas.virtual_machines import TpmOut as TpmOut
from inventory.api.schemas.virtual_machines import VmLine as VmLine
from inventory.api.schemas.virtual_machines import VmOut as VmOut
from inventory.api.schemas.virtual_machines import VmPage as VmPage
