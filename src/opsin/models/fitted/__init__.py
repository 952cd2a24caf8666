"""Models with `fit` and no gradient: scikit-learn's, on features of a network."""
