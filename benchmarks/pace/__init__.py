"""The parts of `benchmarks/speed.py`; `peer` runs in another environment and takes only `clock` and `models` along."""
