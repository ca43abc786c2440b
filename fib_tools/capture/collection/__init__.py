"""Workloads from the calls of a running engine, as FlashInfer writes them down at log level 10."""
