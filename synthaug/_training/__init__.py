"""The training loop, its checkpoints, and what the trainings of all networks share."""
