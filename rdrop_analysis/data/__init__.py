"""Examples to measure on: from files, data sets and values of every kind to tensors in a fixed order."""
