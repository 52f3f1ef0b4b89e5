"""Registries, as a client sees them (OCI distribution-spec 1.1, Docker Registry HTTP API v2)."""
