"""Which sampling parameters make the best training images? A search in two stages.

Azizi et al. 2023, "Synthetic Data from Diffusion Models Improves ImageNet Classification": first
all parameters on the Fréchet distance, then guidance alone on the Fréchet distance, the inception
score, and the accuracy of classifiers trained on the images (CAS). https://arxiv.org/abs/2304.08466
"""
