"""Look inside a model: what it reads and expects, what its weights are like."""
