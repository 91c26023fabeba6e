"""How rare an image is among real ones: hardness, mean neighbor distance, local outlier factor.

Sehwag et al. 2022, "Generating High Fidelity Data from Low-density Regions using Diffusion Models".
Hardness is the negative log-likelihood of an image's features under a Gaussian of its class; the
other two compare with the nearest real images. All are larger where real images are rare.

    gaussians = density.ClassGaussians.fit(features, labels)
    real = gaussians.leave_one_out(features, labels)    # of the images that were fitted
    synthetic = gaussians.hardness(drawn, drawn_labels)

    neighbors = density.Neighborhood(features)
    distance, outlier_factor = neighbors.scores(drawn)

Notation (code -> paper): `features` -> f(x) in R^k; `hardness(f, y)` -> H(x, y); `means` -> mu_y;
`contrastive_loss` -> L_g1, and with synthetic and real as the two classes L_g2; `temperature` ->
tau; `average_distance` -> AvgkNN; `outlier_factor` -> LOF.
"""

from synthaug.density._contrast import contrastive_loss
from synthaug.density._covariance import ESTIMATORS, STRUCTURES, Estimator, Structure
from synthaug.density._gaussians import ClassGaussians
from synthaug.density._neighborhood import (
    Neighborhood,
    NeighborScores,
    average_knn_distance,
    local_outlier_factor,
)

__all__ = [
    "ESTIMATORS",
    "STRUCTURES",
    "ClassGaussians",
    "Estimator",
    "NeighborScores",
    "Neighborhood",
    "Structure",
    "average_knn_distance",
    "contrastive_loss",
    "local_outlier_factor",
]
