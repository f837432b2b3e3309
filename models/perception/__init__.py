"""Public networks that look and listen: made from a path of weights, they turn frames, sounds and texts into features.

Evaluation computes metrics with them, preprocessing filters clips. `checkpoints.py` says which weights fit.
"""
