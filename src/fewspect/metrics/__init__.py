"""What is measured: pure functions over counts and histograms, and thin torchmetrics classes over them."""
