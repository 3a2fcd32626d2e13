"""Data sets, augmentation, optimiser and schedule, mask annealing, metrics, trainer."""
