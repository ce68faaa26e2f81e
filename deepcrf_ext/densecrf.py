"""The earlier name of `deepcrf_ext.pydensecrf`: importing it gives that module."""

import sys

from deepcrf_ext import pydensecrf

sys.modules[__name__] = pydensecrf
