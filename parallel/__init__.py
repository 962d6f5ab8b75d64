"""Plans: which worker runs which cell, and how chunks travel. Knows nothing of models."""
