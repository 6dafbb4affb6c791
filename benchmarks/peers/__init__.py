"""What `benchmarks/peers.py` is made of; the files ``run_*.py`` run inside the environments of the peers."""
