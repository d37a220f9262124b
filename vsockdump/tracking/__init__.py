"""Connections, credit windows and findings, followed across batches."""
