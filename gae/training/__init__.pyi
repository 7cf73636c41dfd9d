from .fitting import fit as fit
from .fitting import restore as restore
from .group import launch as launch
from .history import Epoch as Epoch
from .history import History as History
