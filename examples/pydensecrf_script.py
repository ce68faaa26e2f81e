"""A script written for pydensecrf, with one line changed: the import.

    python examples/pydensecrf_script.py

Saves pydensecrf_script.png: a noisy labelling of a photograph, and what the dense CRF makes of it.
For programs that cannot be changed, `deepcrf_ext.pydensecrf.install()` before they start puts the
same module under the names pydensecrf, pydensecrf.densecrf and pydensecrf.utils.
"""

import matplotlib.pyplot as plt
import numpy as np
from skimage import data

import deepcrf_ext.pydensecrf as dcrf  # was: import pydensecrf.densecrf as dcrf
from deepcrf_ext.pydensecrf import unary_from_labels  # was: from pydensecrf.utils import ...

image = np.ascontiguousarray(data.astronaut()[::2, ::2])
height, width = image.shape[:2]
n_labels = 2

labels = (image.mean(2) > 110).astype(np.int32)
random = np.random.default_rng(0)
noisy = np.where(random.random(labels.shape) < 0.3, 1 - labels, labels)

d = dcrf.DenseCRF2D(width, height, n_labels)
d.setUnaryEnergy(unary_from_labels(noisy, n_labels, gt_prob=0.7, zero_unsure=False))
d.addPairwiseGaussian(sxy=(3, 3), compat=3)
d.addPairwiseBilateral(sxy=(40, 40), srgb=(13, 13, 13), rgbim=image, compat=10)
q = d.inference(5)
result = np.argmax(q, axis=0).reshape(height, width)

for name, found in (("noisy", noisy), ("dense CRF", result)):
    print(f"{name}: {np.mean(found == labels):.1%} of the pixels as thresholded")
figure, axes = plt.subplots(1, 3, figsize=(14, 5), subplot_kw={"xticks": [], "yticks": []})
shown = {"photograph": image, "noisy": noisy, "dense CRF": result}
for axis, title in zip(axes, shown, strict=True):
    axis.imshow(shown[title])
    axis.set_title(title)
figure.savefig("pydensecrf_script.png", bbox_inches="tight")
print("drawn in pydensecrf_script.png")
