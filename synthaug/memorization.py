"""Whether a model keeps its training images, beyond what its images look like.

    from synthaug import memorization

    report = synthaug.membership(model, train, holdout, random_split=True)

    planted = memorization.plant(train, memorization.CanaryConfig(pairs=5))
    marked, _ = ClassConditional.fit(planted, "runs/marked")
    planted.plan.save("runs/marked")
    report = memorization.came_back(cache, "runs/marked")     # of images that `marked` drew

`synthaug.audit` compares images; the other two ways are here: membership, which asks the network
how well it restores images, and canaries, which are marked before training.
"""

from synthaug._audit.canaries import CanaryConfig, CanaryPlan, PlantedImages, plant
from synthaug._audit.canary_report import CanaryReport, came_back
from synthaug._audit.members import membership
from synthaug._audit.membership_report import MembershipReport

__all__ = [
    "CanaryConfig",
    "CanaryPlan",
    "CanaryReport",
    "MembershipReport",
    "PlantedImages",
    "came_back",
    "membership",
    "plant",
]
