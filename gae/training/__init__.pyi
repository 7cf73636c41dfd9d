from .fitting import fit as fit
from .fitting import restore as restore
from .history import Epoch as Epoch
from .history import History as History
