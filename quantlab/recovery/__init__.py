"""Accuracy recovery: making up, in the model and in its codes, for what INT8 costs."""
