"""The paper as numbers: costs, ablations, comparisons, times."""
