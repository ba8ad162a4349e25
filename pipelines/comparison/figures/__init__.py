"""Figures of finished runs: t-SNE of Phi's features, crops side by side with their segmentation, learning curves."""
