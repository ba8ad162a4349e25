"""Finished runs compared: as a table, as figures, and as an HTML report.

rows          finished runs grouped into rows: a row is one setting, its runs differ in their seed alone
intervals     intervals of metrics and of gains, by a bootstrap over the photographs
paper         the paper's published numbers
fronts        objectives at several weights, compared at equal PSNR
render        rows as a table: on the terminal, as table.md and as table.json
photographs   evaluation photographs as each row restores them
figures/      t-SNE of features, crops side by side, learning curves, fronts
report/       all of it as one HTML file
mlflow_run    the MLflow run that keeps the files of a comparison
"""
