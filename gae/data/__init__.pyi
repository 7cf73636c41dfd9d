from .dataset import Dataset as Dataset
from .dataset import Rows as Rows
from .loading import LinearGaussian as LinearGaussian
from .loading import linear_gaussian as linear_gaussian
from .loading import load as load
from .loading import training_data as training_data
from .names import NAMES as NAMES
from .preparation import BINARIZATIONS as BINARIZATIONS
