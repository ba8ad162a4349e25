"""Figures of finished runs side by side: t-SNE of Phi's features, crops with their segmentation, convergence."""
