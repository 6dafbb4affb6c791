"""What a model is for, and by which figures a variant of it is judged."""
