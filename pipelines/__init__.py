"""The verbs on Ray, with MLflow: train, evaluate, denoise, register."""
