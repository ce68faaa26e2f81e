"""Gives its place to `deepcrf_ext.pydensecrf` as soon as it is imported."""

import os

from deepcrf_ext.pydensecrf import DEVICE_VARIABLE, install

install(device=os.environ.get(DEVICE_VARIABLE), replace=True)
