"""Pure functions of features: nearest neighbors, kNN, logistic regression, rank and collapse, scores."""
