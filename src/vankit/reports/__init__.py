"""Reports of a training run or a validation: its figures, curves and worst mistakes, as one page that opens offline."""
