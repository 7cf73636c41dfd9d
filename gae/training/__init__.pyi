from .annealing import Anneal as Anneal
from .callbacks import Callback as Callback
from .fitting import fit as fit
from .fitting import restore as restore
from .history import Epoch as Epoch
from .history import History as History
from .schedules import cosine as cosine
from .schedules import linear as linear
